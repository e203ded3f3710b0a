"""The `tokenizer.json` written for a tokenizer that came as `tokenizer.model`, beside transformers'."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.checkpoint_models import text_config
from tests.conftest import random_model
from tests.tokenizer_cases import BYTES, HOSTILE, META_FILE, library_twin, our_tokenizer, random_texts, refusal
from vlm import VLM, preset
from vlm.tokenizer import META_SPECIALS, Tokenizer
from vlm.tokenizer_files.json_reader import parse_json_file
from vlm.tokenizer_files.llama3 import meta_special_ids


@pytest.fixture(scope="module")
def ours():
    return our_tokenizer()


@pytest.fixture(scope="module")
def written(ours, tmp_path_factory):
    """A folder saved for a tokenizer that came as `tokenizer.model`."""
    folder = tmp_path_factory.mktemp("written")
    ours.save(folder, format="hf")
    return folder


@pytest.fixture(scope="module")
def theirs(written):
    return AutoTokenizer.from_pretrained(written)


def test_the_written_folder_holds_both_formats(written):
    assert {path.name for path in written.iterdir()} == {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    assert (written / "tokenizer.model").read_bytes() == META_FILE.read_bytes()


def test_the_written_vocabulary_and_merges_are_those_of_transformers_converter(written):
    ours, twin = json.loads((written / "tokenizer.json").read_bytes()), json.loads(library_twin().to_str())
    assert [merge.split(" ") for merge in ours["model"].pop("merges")] == twin["model"].pop("merges")
    assert ours["model"] == twin["model"]
    assert ours["pre_tokenizer"]["pretokenizers"][0] == twin["pre_tokenizer"]["pretokenizers"][0]


def test_transformers_gives_the_same_ids_and_texts(ours, theirs):
    for text in random_texts(seed=11, num_texts=2000, surrogates=False) + HOSTILE:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids, repr(text)
        assert theirs.decode(ids) == text
    assert theirs.encode("hi") == ours.encode("hi", bos=True)


def test_transformers_gives_the_same_special_tokens(ours, theirs):
    for name in META_SPECIALS:
        expected = ours.image_marker_id if name == "<|image|>" else ours.special_ids[name]
        assert theirs.encode(f"a{name}", add_special_tokens=False) == [*ours.encode("a"), expected]
    assert sorted(theirs.all_special_ids) == [128_000, 128_001, 128_004]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert len(theirs) == ours.vocab_size + 1
    assert theirs.decode([ours.special_ids["<|image|>"]]) == "<|reserved_special_token_246|>"


def test_the_written_file_reads_back_as_the_same_tokenizer(ours, written):
    again = Tokenizer.from_folder(written)
    assert again.ranks == ours.ranks
    assert (again.image_marker_id, again.vocab_size) == (ours.image_marker_id, ours.vocab_size)
    assert (again.bos_id, again.stop_ids) == (ours.bos_id, ours.stop_ids)
    moved = {"<|image|>": 128_256, "<|reserved_special_token_246|>": 128_011}
    assert again.special_ids == ours.special_ids | moved
    for text in random_texts(seed=12, num_texts=2000, surrogates=True):
        assert again.encode(text) == ours.encode(text)
    assert again.files("meta") == ours.files("meta")
    assert again.files("hf")["tokenizer.json"] == (written / "tokenizer.json").read_bytes()


letters_in_any_order = st.lists(st.text("abc", min_size=2, max_size=6), unique=True, max_size=30)


@settings(max_examples=300, deadline=None)
@given(words=letters_in_any_order, texts=st.lists(st.text("abc", max_size=40), min_size=1, max_size=5))
def test_any_vocabulary_gives_the_same_ids_in_the_tokenizers_library(words, texts):
    """Also one that no training makes: with wholes before their parts, and tokens no merges lead to."""
    ranks = BYTES.ranks | {word.encode(): 256 + index for index, word in enumerate(words)}
    tokenizer = Tokenizer(ranks, meta_special_ids(len(ranks)))
    content = tokenizer.files("hf")["tokenizer.json"]
    assert parse_json_file(content)["ranks"] == ranks
    twin = tokenizers.Tokenizer.from_buffer(content)
    for text in texts:
        assert tokenizer.encode(text) == twin.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("has_vision", [True, False])
def test_transformers_reads_the_tokenizer_of_a_saved_model(tmp_path, has_vision):
    model = random_model(preset("tiny") if has_vision else text_config())
    VLM(model, BYTES).save_pretrained(tmp_path / "model", format="hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in random_texts(seed=13, num_texts=200, surrogates=False):
        assert theirs.encode(text, split_special_tokens=True) == BYTES.encode(text, bos=True)
    assert theirs.convert_tokens_to_ids("<|image|>") == BYTES.image_marker_id == 512
    assert theirs.pad_token_id == BYTES.special_ids["<|finetune_right_pad_id|>"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_tokenizer_that_metas_format_cannot_hold_is_refused_before_weights_are_written(tmp_path, monkeypatch, is_new):
    words = Tokenizer(BYTES.ranks, BYTES.special_ids, text_ids={"word": 513})
    folder = tmp_path / "model"
    if not is_new:
        folder.mkdir()

    def staged(*args, **kwargs):
        raise AssertionError("something was written")

    monkeypatch.setattr("vlm.checkpoint.saving.staged", staged)
    message = refusal(
        "checkpoint_invalid", VLM(random_model(preset("tiny")), words).save_pretrained, folder, format="meta"
    )
    assert message.startswith("the tokenizer cannot be written as tokenizer.model (1 added words, 'word' first)")
    assert folder.exists() != is_new
