"""`tokenizer.json` read as the `tokenizers` library reads it, or refused."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.tokenizer_cases import HOSTILE, META_FILE, library_twin, metas_tokenizer, random_texts, refusal, small_json
from vlm.tokenizer import Tokenizer
from vlm.tokenizer_files.json_reader import GPT2_PATTERN
from vlm.tokenizer_files.llama3 import REQUIRED_SPECIALS


@pytest.fixture(scope="module")
def meta():
    return metas_tokenizer()


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """The `tokenizers` library's twin and the folder it is saved in."""
    folder = tmp_path_factory.mktemp("hf")
    library_twin().save(str(folder / "tokenizer.json"))
    return library_twin(), folder


@pytest.fixture(scope="module")
def from_hf(hf):
    return Tokenizer.from_folder(hf[1])


@pytest.fixture(name="small_json")
def fresh_small_json():
    return small_json()


def test_ids_are_those_of_the_tokenizers_library(hf, from_hf):
    twin, tokenizer = hf[0], from_hf
    words = ["<chart>", "Sichtlinien", "Sicht", "Sichtlini", "<chart", "SichtSichtlinie<chart><chart>"]
    texts = [f"{word}{text}{word} {text}" for word, text in zip(words * 500, random_texts(5, 3000, False), strict=True)]
    texts += random_texts(6, 20_000, False) + HOSTILE + words
    for text, theirs in zip(texts, twin.encode_batch(texts, add_special_tokens=False), strict=True):
        assert tokenizer.encode(text) == theirs.ids, repr(text)
        assert tokenizer.decode(theirs.ids) == text
    assert tokenizer.encode("<chart>") == [twin.token_to_id("<chart>")] == [128_257]


def test_added_tokens_keep_their_ids(hf, from_hf):
    twin, tokenizer = hf[0], from_hf
    assert tokenizer.image_marker_id == tokenizer.special_ids["<|image|>"] == 128_256
    assert tokenizer.text_ids == {"<chart>": 128_257, "Sichtlinie": 128_258, "Sicht": 128_259}
    assert tokenizer.vocab_size == twin.get_vocab_size() == 128_261
    every = {**tokenizer.special_ids, **tokenizer.text_ids}
    assert every == {name: twin.token_to_id(name) for name in every}
    assert {entry.content for entry in twin.get_added_tokens_decoder().values()} == set(every)


def test_without_the_added_words_ids_and_special_tokens_are_metas(hf, meta, tmp_path):
    root = json.loads((hf[1] / "tokenizer.json").read_bytes())
    root["added_tokens"] = [token for token in root["added_tokens"] if token["id"] <= 128_256]
    (tmp_path / "tokenizer.json").write_text(json.dumps(root))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.image_marker_id) == (128_256, 128_256)
    assert sorted(tokenizer.stop_ids) == sorted(meta.stop_tokens)
    for text in random_texts(seed=7, num_texts=1000, surrogates=False):
        assert tokenizer.encode(text, bos=True) == meta.encode(text, bos=True, eos=False)
    # The two formats say the same then, so a folder of either can be written.
    assert tokenizer.files() == {
        "tokenizer.json": (tmp_path / "tokenizer.json").read_bytes(),
        "tokenizer.model": META_FILE.read_bytes(),
    }


def test_a_json_file_is_saved_as_it_was_read(hf, from_hf, tmp_path):
    # Meta's format has no place for the added words.
    assert [path.name for path in from_hf.save(tmp_path)] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_bytes() == (hf[1] / "tokenizer.json").read_bytes()
    assert refusal("checkpoint_invalid", from_hf.save, tmp_path / "meta", format="meta") == (
        "the tokenizer cannot be written as tokenizer.model (3 added words, '<chart>' first); expected Meta's pattern "
        'and special tokens and no added words; save with format="hf"'
    )


def trained(pre_tokenizer):
    twin = tokenizers.Tokenizer(models.BPE())
    twin.pre_tokenizer = pre_tokenizer
    twin.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*REQUIRED_SPECIALS, "<|image|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    twin.train_from_iterator(random_texts(seed=8, num_texts=3000, surrogates=False), trainer)
    return twin


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(r"\d|[a-z]+"), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ],
    ids=["GPT-2's pattern", "a pattern that leaves gaps"],
)
def test_a_trained_vocabulary_with_its_special_tokens_first_is_read(tmp_path, pre_tokenizer):
    twin = trained(pre_tokenizer)
    twin.save(str(tmp_path / "tokenizer.json"))
    twin.encode_special_tokens = True
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.image_marker_id, tokenizer.vocab_size) == (0, 5, 600)
    texts = random_texts(seed=9, num_texts=3000, surrogates=False)
    for text, theirs in zip(texts, twin.encode_batch(texts, add_special_tokens=False), strict=True):
        assert tokenizer.encode(text) == theirs.ids
        assert tokenizer.decode(theirs.ids) == text
    assert list(tokenizer.files()) == ["tokenizer.json"]


def test_the_markers_id_can_be_given_by_the_checkpoints_config(tmp_path):
    trained(pre_tokenizers.ByteLevel(add_prefix_space=False)).save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path, image_marker_id=700).image_marker_id == 700
    message = refusal("checkpoint_invalid", Tokenizer.from_folder, tmp_path, image_marker_id=0)
    assert message.startswith("the image marker's id 0 is that of another token; expected one of its own; check image_")


def test_the_small_json_file_is_valid(small_json, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_json))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("abcab") == [257, 256]
    # Llama 3.0 and text-only files: no <|eom_id|>, no <|image|>.
    assert len(tokenizer.stop_ids) == 2
    assert tokenizer.image_marker_id == 258 + 256


def test_a_word_that_took_the_markers_id_stays_a_word(small_json, tmp_path):
    small_json["added_tokens"].append({"id": 258 + 256, "content": "word", "special": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_json))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.image_marker_id is None
    assert tokenizer.decode(tokenizer.encode("a word")) == "a word"
    assert not tokenizer.is_special(258 + 256)
    assert tokenizer.vocab_size == 258 + 256 + 1


def changed(root, path, value):
    *parents, last = path.split(".")
    for name in parents:
        root = root[int(name) if name.isdigit() else name]
    if isinstance(root, list):
        root.append(value) if last == "+" else root.__setitem__(int(last), value)
    else:
        root[last] = value


def word(content, token_id, **flags):
    return {"content": content, "id": token_id, "special": False, **flags}


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("model", None, "no 'model'; expected BPE over bytes"),
        ("model.vocab", [], "no 'vocab'; expected BPE over bytes"),
        ("model.merges", None, "no 'merges'; expected BPE over bytes"),
        ("model.type", "Unigram", "model type 'Unigram'; expected BPE over bytes"),
        ("model.dropout", 0.1, "dropout of type float; expected none"),
        ("model.byte_fallback", True, "byte_fallback of type bool; expected none"),
        ("model.continuing_subword_prefix", "##", "continuing_subword_prefix '##'; expected none"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix '</w>'; expected none"),
        ("normalizer", {"type": "NFC"}, "a normalizer, which changes the text; expected none"),
        ("pre_tokenizer", None, "pre_tokenizer 'None'; expected one Split by Regex"),
        ("pre_tokenizer", {"type": "Metaspace"}, "pre_tokenizer 'Metaspace'; expected one Split by Regex"),
        ("pre_tokenizer.pretokenizers", {}, "pre_tokenizer ''; expected one Split by Regex"),
        ("pre_tokenizer.pretokenizers.+", {"type": "Digits"}, "pre_tokenizer 'Split ByteLevel Digits'; expected one"),
        ("pre_tokenizer.pretokenizers.1.add_prefix_space", True, "a ByteLevel that adds a space or splits again"),
        ("pre_tokenizer.pretokenizers.1.use_regex", True, "a ByteLevel that adds a space or splits again"),
        ("pre_tokenizer.pretokenizers.0.pattern", {"String": " "}, "a Split by of type dict"),
        ("pre_tokenizer.pretokenizers.0.behavior", "Removed", "a Split by of type dict"),
        (
            "pre_tokenizer.pretokenizers.0.pattern.Regex",
            "(",
            "the pattern '(|(?:(?!()[\\\\s\\\\S])+'; expected one that",
        ),
        ("model.vocab.ab", -1, "id -1 of token 'ab'; expected whole numbers from 0"),
        ("model.vocab.ab", "256", "id of type str of token 'ab'; expected whole numbers from 0"),
        ("model.vocab.▁the", 300, "token '▁the'; expected tokens spelt in GPT-2's 256 letters for bytes"),
        ("model.vocab.a b", 300, "token 'a b'; expected tokens spelt in GPT-2's 256 letters for bytes"),
        ("model.merges.+", "a", "merges[2] 'a'; expected two tokens that make a third"),
        ("model.merges.+", ["x", "y"], "merges[2] of type list; expected two tokens that make a third"),
        ("model.merges.+", ["ab", ""], "merges[2] of type list; expected two tokens that make a third"),
        ("model.merges.+", ["a", "bc"], "merges[2] of type list; expected two tokens that make a third"),
        ("model.merges.+", 7, "merges[2] of type int; expected two tokens that make a third"),
        ("model.merges", ["ab c", "a b"], "merges[1] out of the order of ids; expected merges in the order of the ids"),
        ("model.merges", ["a b"], "token 'abc' without the merge that makes it; expected a merge for every token"),
        ("added_tokens.+", {"id": 300}, "added_tokens[5] without a legal content and id; expected both of every"),
        ("added_tokens.+", word("", 300), "added_tokens[5] without a legal content and id; expected both of every"),
        ("added_tokens.+", word("\ud800", 300), "added_tokens[5] without a legal content and id; expected both of"),
        ("added_tokens.+", word("x", 2**40), "added_tokens[5] without a legal content and id; expected both of every"),
        ("added_tokens", 7, "added_tokens[0] without a legal content and id; expected both of every added token"),
        ("added_tokens.+", word("<|eot_id|>", 300), "added token '<|eot_id|>' twice; expected every added token once"),
        ("added_tokens.+", word("x y", 300, lstrip=True), "lstrip of added word 'x y'; expected added words that"),
        ("added_tokens.+", word("x y", 300, single_word=True), "single_word of added word 'x y'; expected added words"),
    ],
)
def test_a_json_file_of_another_kind_is_refused(small_json, tmp_path, path, value, found):
    changed(small_json, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_json))
    message = refusal("checkpoint_invalid", Tokenizer.from_folder, tmp_path)
    assert message.startswith(f"tokenizer.json has {found}")
    assert message.endswith("; remove it where the folder has a tokenizer.model too")


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (
            "added_tokens.0.content",
            "<|bos|>",
            "the tokenizer lacks the special tokens <|begin_of_text|>; expected those",
        ),
        ("added_tokens.0.id", 65, "tokens b'b' and '<|begin_of_text|>' have the same id 65; expected one token an id"),
        ("model.vocab.ab", 257, "tokens b'ab' and b'abc' have the same id 257; expected one token an id"),
    ],
)
def test_a_json_file_with_clashing_or_missing_tokens_is_refused(small_json, tmp_path, path, value, found):
    changed(small_json, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_json))
    assert refusal("checkpoint_invalid", Tokenizer.from_folder, tmp_path).startswith(found)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "tokenizer.json cannot be read ('Expecting value"),
        (b"\xff\xfe\xfd", "tokenizer.json cannot be read ("),
        (b"[" * 100_000, "tokenizer.json cannot be read ('nested too deeply')"),
        (b'{"model": {}, "model": {}}', "tokenizer.json cannot be read ('the same key twice in one object')"),
        (b'{"model": ' + b"1" * 5000 + b"}", "tokenizer.json cannot be read ('Exceeds the limit"),
        (b"[]", "tokenizer.json has no 'model'"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, content, found):
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert refusal("checkpoint_invalid", Tokenizer.from_folder, tmp_path).startswith(found)


def test_words_used_whole_without_ignore_merges_are_announced(small_json, tmp_path, caplog):
    small_json["model"]["vocab"]["xyz"] = 300
    small_json["model"]["ignore_merges"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_json))
    assert Tokenizer.from_folder(tmp_path).encode("xyz") == [300]
    [record] = caplog.records
    assert "does not set ignore_merges, and 1 of its tokens come about by no merges" in record.getMessage()


def test_gpt2s_pattern_is_the_tokenizers_librarys():
    twin = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splitter = pre_tokenizers.Split(tokenizers.Regex(GPT2_PATTERN), behavior="isolated")
    for text in random_texts(seed=10, num_texts=2000, surrogates=False):
        assert [span for _, span in twin.pre_tokenize_str(text)] == [
            span for _, span in splitter.pre_tokenize_str(text)
        ]
