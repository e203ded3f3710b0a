"""Texts to ids and back beside Meta's own tokenizer, and what the tokenizer does with hostile input."""

import copy
import datetime
import pickle
import time

import llama_models.llama3.tokenizer as meta_module
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer_cases import (
    HOSTILE,
    library_twin,
    metas_tokenizer,
    our_tokenizer,
    random_texts,
    refusal,
)
from vlm.tokenizer import MAX_CHARS, META_SPECIALS, StreamDecoder, Tokenizer, split_long_runs

PLACES = {
    "start": "{}x",
    "middle": "a {} b",
    "end": "x{}",
    "doubled": "{0}{0}",
    "split by a ZWJ": "{head}\u200d{tail}",
}


@pytest.fixture(scope="module")
def meta():
    return metas_tokenizer()


@pytest.fixture(scope="module")
def ours():
    return our_tokenizer()


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """The `tokenizers` library's twin and the folder it is saved in."""
    folder = tmp_path_factory.mktemp("hf")
    library_twin().save(str(folder / "tokenizer.json"))
    return library_twin(), folder


@pytest.fixture(scope="module")
def from_hf(hf):
    return Tokenizer.from_folder(hf[1])


# --- beside Meta's tokenizer ------------------------------------------------------------------------------------------


def test_special_tokens_are_metas(meta, ours):
    assert len(META_SPECIALS) == 256
    assert ours.special_ids == meta.special_tokens
    assert ours.vocab_size == meta.n_words == 128256
    assert (ours.bos_id, ours.eos_id, ours.eot_id) == (meta.bos_id, meta.eos_id, meta.eot_id)
    assert sorted(ours.stop_ids) == sorted(meta.stop_tokens)
    assert (ours.special_ids["<|image|>"], ours.image_marker_id) == (128011, 128256)
    assert ours.pattern == meta.pat_str


def test_ids_of_100_000_random_texts_are_metas_and_decode_to_the_text(meta, ours):
    for text in random_texts(seed=1, num_texts=100_000, surrogates=False):
        ids = ours.encode(text)
        assert ids == meta.encode(text, bos=False, eos=False), repr(text)
        assert ours.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200), bos=st.booleans(), eos=st.booleans())
def test_ids_of_any_text_are_metas(meta, ours, text, bos, eos):
    ids = ours.encode(text, bos=bos, eos=eos)
    assert ids == meta.encode(text, bos=bos, eos=eos)
    assert ours.decode(ids[bos : len(ids) - eos]) == text
    assert ours.count(text) == len(ids) - bos - eos


def test_lone_surrogates_become_replacement_characters_as_in_metas(meta, ours):
    texts = random_texts(seed=2, num_texts=2000, surrogates=True)
    # A pair that Meta's cut tears apart becomes two replacement characters.
    for text in ["\ud800", "a\udfffb", "\ud83d\ude00", "x" * 24_999 + "\ud83d\ude00" + "y" * 9, *texts]:
        ids = ours.encode(text)
        assert ids == meta.encode(text, bos=False, eos=False)
        assert ours.decode(ids) == meta.decode(ids)
        ours.decode(ids).encode()
    assert ours.decode(ours.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_give_metas_ids_and_decode_to_themselves(meta, ours, text):
    assert ours.encode(text) == meta.encode(text, bos=False, eos=False)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("num_chars", [24_999, 25_000, 25_001, 399_999, 400_000, 400_001])
@pytest.mark.parametrize("unit", ["a", " ", "ab c", "é", "😀", " \n\u00a0", "😀漢" * 12_501 + " ", "1"])
def test_long_texts_give_metas_ids(meta, ours, unit, num_chars):
    text = (unit * (num_chars // len(unit) + 1))[:num_chars]
    ids = ours.encode(text)
    assert ids == meta.encode(text, bos=False, eos=False)
    assert ours.decode(ids) == text


def meta_pieces(text):
    """Return what Meta's `Tokenizer.encode` gives to tiktoken one by one."""
    pieces = []
    for start in range(0, len(text), meta_module.TIKTOKEN_MAX_ENCODE_CHARS):
        call = text[start : start + meta_module.TIKTOKEN_MAX_ENCODE_CHARS]
        pieces += meta_module.Tokenizer._split_whitespaces_or_nonwhitespaces(call, meta_module.MAX_NO_WHITESPACES_CHARS)
    return pieces


run_lengths = st.sampled_from([1, 2, 24_999, 25_000, 25_001, 49_999, 50_000, 50_001, 75_001, 125_000])


@settings(max_examples=40, deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.sampled_from(["a", "é", "😀", " ", "\n", "\u00a0", "\x1f", "\u200b"]), run_lengths), max_size=8
    )
)
def test_pieces_are_metas_and_join_to_the_text(runs):
    text = "".join(char * length for char, length in runs)
    pieces = list(split_long_runs(text))
    assert pieces == meta_pieces(text)
    assert "".join(pieces) == text


def test_splitting_is_the_identity_on_what_needs_no_cut():
    words = "word " * 79_999
    assert list(split_long_runs(words)) == [words]
    assert list(split_long_runs("")) == []


# --- nothing becomes a special token ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_no_spelling_of_a_special_token_becomes_one(ours, from_hf, place):
    for tokenizer in (ours, from_hf, Tokenizer.bytes_only()):
        for name in [*META_SPECIALS, *tokenizer.special_ids]:
            text = PLACES[place].format(name, head=name[:5], tail=name[5:])
            ids = tokenizer.encode(text)
            assert not any(tokenizer.is_special(token_id) for token_id in ids)
            assert max(ids) < len(tokenizer.ranks)
            assert tokenizer.decode(ids) == text


def test_the_encoder_inside_knows_no_special_token(ours, from_hf):
    for tokenizer in (ours, from_hf):
        assert tokenizer._encoding.special_tokens_set == set()


def test_an_added_token_in_bars_is_special_whatever_the_file_says(hf, from_hf):
    assert from_hf.is_special(from_hf.special_ids["<|im_start|>"])
    assert from_hf.special_ids["<|im_start|>"] == hf[0].token_to_id("<|im_start|>")


# --- ids to text ------------------------------------------------------------------------------------------------------


def test_special_tokens_and_the_marker_decode_to_their_names_or_not_at_all(ours):
    ids = [ours.bos_id, *ours.encode("hi"), ours.special_ids["<|image|>"], ours.image_marker_id, ours.eot_id]
    assert ours.decode(ids) == "<|begin_of_text|>hi<|image|><|image|><|eot_id|>"
    assert ours.decode([*ids, 128257, 10**9, -1], skip_special=True) == "hi"
    assert ours.decode([]) == ""


def test_is_special_holds_for_all_that_no_answer_may_hold(ours):
    assert not any(map(ours.is_special, range(128_000)))
    assert all(map(ours.is_special, [*range(128_000, 128_264), -1, 10**12]))


def test_single_token_bytes_are_metas(meta, ours):
    for token_id in [0, 1, 255, 256, 127_999, 128_000, 128_009, 128_255]:
        assert ours.decode_single_token_bytes(token_id) == meta.model.decode_single_token_bytes(token_id)
    assert ours.decode_single_token_bytes(128_256) == b"<|image|>"


def test_ids_may_come_as_a_tensor_or_an_array(ours):
    import numpy
    import torch

    ids = ours.encode("héllo")
    assert ours.decode(torch.tensor(ids)) == ours.decode(numpy.array(ids)) == ours.decode(iter(ids)) == "héllo"
    assert ours.decode(list(numpy.array(ids))) == "héllo"


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 511), max_size=60), cut=st.integers(1, 7), skip_special=st.booleans())
def test_streamed_pieces_join_to_the_decoding(ids, cut, skip_special):
    tokenizer = Tokenizer.bytes_only()
    decoder = StreamDecoder(tokenizer, skip_special=skip_special)
    for _ in range(2):
        pieces = [decoder.feed(ids[start : start + cut]) for start in range(0, len(ids), cut)]
        assert "".join([*pieces, decoder.flush()]) == tokenizer.decode(ids, skip_special=skip_special)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=50))
def test_streamed_pieces_never_split_a_character(ours, text):
    for tokenizer in (Tokenizer.bytes_only(), ours):
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.feed([token_id]) for token_id in tokenizer.encode(text)]
        assert "".join(pieces) == text
        assert decoder.flush() == ""
        assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


def test_an_incomplete_last_character_is_replaced_at_the_flush():
    tokenizer = Tokenizer.bytes_only()
    decoder = StreamDecoder(tokenizer)
    assert decoder.feed([0xF0, 0x9F, 0x98]) == ""
    assert decoder.flush() == "\ufffd" == tokenizer.decode([0xF0, 0x9F, 0x98])


# --- refusals when text is read ---------------------------------------------------------------------------------------


class Unused:
    def encode(self, *args, **kwargs):
        raise AssertionError("the text was tokenised")


def test_too_long_a_text_is_refused_before_it_is_tokenised(ours, monkeypatch):
    monkeypatch.setattr(ours, "_encoding", Unused())
    for call in (ours.encode, ours.count):
        message = refusal("context_length_exceeded", call, "^" * (MAX_CHARS + 1))
        assert message == "text has 4000001 characters; expected at most 4000000; shorten it or send it in parts"


def test_the_longest_text_is_tokenised(ours):
    assert ours.count(" " * MAX_CHARS) < 131_072


def test_a_panic_of_the_encoder_refuses_the_text_and_nothing_else(ours, monkeypatch, capfd):
    broken = tiktoken.Encoding("broken", pat_str=r"\w+", mergeable_ranks={b"a": 0}, special_tokens={})
    with pytest.raises(BaseException) as caught:  # noqa: PT011 (it is what is looked at)
        broken.encode("b")
    assert not isinstance(caught.value, Exception), "no longer the panic this test is about"
    with monkeypatch.context() as patch:
        patch.setattr(ours, "_encoding", broken)
        message = refusal("invalid_request", ours.encode, "b")
    assert message.startswith("a piece of text of 1 characters could not be tokenised; expected text that")
    assert ours.decode(ours.encode("b")) == "b"


def test_a_failed_split_refuses_the_text(ours, monkeypatch):
    class Backtracking:
        def encode(self, *args, **kwargs):
            raise ValueError("regex error: backtrack limit")

    monkeypatch.setattr(ours, "_encoding", Backtracking())
    assert "could not be tokenised" in refusal("invalid_request", ours.encode, "b")


def test_an_interrupt_while_encoding_is_passed_on(ours, monkeypatch):
    class Interrupted:
        def encode(self, *args, **kwargs):
            raise KeyboardInterrupt

    monkeypatch.setattr(ours, "_encoding", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        ours.encode("b")


@pytest.mark.parametrize(("text", "kind"), [(b"hi", "bytes"), (None, "NoneType"), (["hi"], "list")])
def test_what_is_no_string_is_refused(ours, text, kind):
    assert (
        refusal("invalid_request", ours.encode, text) == f"text is of type '{kind}'; expected str; decode bytes first"
    )


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([1, 128_257], "id 128257 is no token's"),
        ([-1], "id -1 is no token's"),
        ([10**5000], "id of type int is no token's"),
        (["<|image|>"], "id of type str is no token's"),
        ([[1]], "ids of type list are no list of integers"),
        (7, "ids of type int are no list of integers"),
    ],
)
def test_ids_of_no_token_are_refused(ours, ids, found):
    message = refusal("invalid_request", ours.decode, ids)
    assert message == (
        f"{found}; expected ids below 128256 or the image marker 128256; leave other ids out, or pass skip_special=True"
    )
    if ids == [1, 128_257]:
        assert refusal("invalid_request", ours.decode_single_token_bytes, 128_257) == message


@pytest.mark.full
def test_hostile_repeats_take_linear_time(ours, capsys):
    """Prints, and asserts no time: T1 of the fault table."""
    units = ["^", "0", "a", "'", "\n", "\t", "'s", "-", "😀", "\u00a0", "\u200d", " ", "<|eot_id|>", "ab "]
    with capsys.disabled():
        print(f"\n{datetime.date.today()} seconds to encode unit*N by number of characters")
        for unit in units:
            figures = []
            for num_chars in (10_000, 100_000, 1_000_000, MAX_CHARS, 10_000_000):
                text = (unit * num_chars)[:num_chars]
                start = time.perf_counter()
                if num_chars > MAX_CHARS:
                    refusal("context_length_exceeded", ours.encode, text)
                else:
                    ours.encode(text)
                figures.append(f"{num_chars:>8}: {time.perf_counter() - start:.4f}")
            print(f"{unit!r:>14}  " + "  ".join(figures))


def test_copies_and_pickles_encode_the_same():
    tokenizer = Tokenizer.bytes_only()
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.encode("hé", bos=True) == tokenizer.encode("hé", bos=True)
        assert twin.special_ids == tokenizer.special_ids
