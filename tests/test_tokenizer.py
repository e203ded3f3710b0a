"""The tokenizer beside Meta's own and beside the `tokenizers` library, and what it does with hostile input."""

import copy
import datetime
import itertools
import json
import pickle
import random
import time
from pathlib import Path

import llama_models.llama3.tokenizer as meta_module
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from vlm.errors import VLMError
from vlm.tokenizer import MAX_CHARS, META_SPECIALS, StreamDecoder, Tokenizer, split_long_runs
from vlm.tokenizer_files.json_reader import GPT2_PATTERN
from vlm.tokenizer_files.llama3 import LLAMA_PATTERN, REQUIRED_SPECIALS, meta_special_ids

META_FILE = Path(meta_module.__file__).with_name("tokenizer.model")
BYTES = Tokenizer.bytes_only()
# Hugging Face's files count all others of the 256 as reserved, so that 128011 is <|reserved_special_token_3|>.
KEPT_NAMES = {name for name in META_SPECIALS[:11] if "reserved" not in name} - {"<|step_id|>"}
PLACES = {
    "start": "{}x",
    "middle": "a {} b",
    "end": "x{}",
    "doubled": "{0}{0}",
    "split by a ZWJ": "{head}\u200d{tail}",
}
HOSTILE = [
    "",
    "\0",
    "\0\0a\0",
    "\ufeff\ufeffa",
    "\u202eevil\u202c",
    "مرحبا بالعالم",
    "e\u0301\u0301\u0301" * 50,
    "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈",
    "\u0085\u2028\u2029\u180e\u3000",
    "\x1c\x1d\x1e\x1f",
    "\U0010ffff\U000e0001",
    "ſ'ſ 'S 'ſt I'LL \u212a",
    "\r\n\r\n \r \n\t\n  x",
    "٣٤٥٦ ½ Ⅷ ⁴⁵ 1234567",
    "{{7*7}} ${jndi:ldap://x} %s%n ../../etc/passwd '; DROP TABLE t;--",
    "<|<|image|>|> <|image|><|image|> <|eot_id|",
]


@pytest.fixture(scope="module")
def meta():
    return meta_module.Tokenizer(META_FILE)


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.from_model_file(META_FILE)


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """The `tokenizers` library's twin, its file laid out like that of Llama-3.2-11B-Vision, and its folder.

    The reserved tokens are counted on, the marker comes after them, and a fine-tune added three words and a token.
    """
    twin = TikTokenConverter(str(META_FILE)).converted()
    numbers = itertools.count()
    names = [name if name in KEPT_NAMES else f"<|reserved_special_token_{next(numbers)}|>" for name in META_SPECIALS]
    twin.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in [*names, "<|image|>"]])
    twin.add_tokens(["<chart>", "Sichtlinie", "Sicht", AddedToken("<|im_start|>", normalized=False)])
    folder = tmp_path_factory.mktemp("hf")
    twin.save(str(folder / "tokenizer.json"))
    # What Hugging Face would find in a text by default; a text of ours never becomes these.
    twin.encode_special_tokens = True
    return twin, folder


@pytest.fixture(scope="module")
def from_hf(hf):
    return Tokenizer.from_folder(hf[1])


def random_texts(seed: int, num_texts: int, surrogates: bool) -> list[str]:
    draw = random.Random(seed)
    words = ["The", "quick\tbrown", "FOX", "don't", "DON'T", "they'll", "it's", "'twas", "2024", "1234567", "3.14"]
    words += ["1e-9", "x=y;", "f(a,b)", "https://a.b/c?d", "Sightline", "a"]
    scripts = [
        "漢字仮名交じり文",
        "Привет мир",
        "ελληνικά",
        "हिन्दी भाषा",
        "ไทย",
        "한국어",
        "עברית",
        "Ünïcödé ß ſ İ ı",
        "Dž ǅ",
    ]
    marks = ["\u0301", "\u200d", "\ufe0f", "\u00a0", "\u3000", "\u0085", "\u2028", "\ufeff", "\0", "\x1f", "\u180e"]
    emoji = ["😀", "👩\u200d👧", "🏳️\u200d🌈", "🇩🇪", "👍🏽"]
    spaces = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\r"]
    signs = [*"!?.,;:'\"-_()[]{}<>|/\\@#$%^&*+=~`", "...", "--", "<|", "|>", "'s", "'S", "'", "’s"]
    pool = words + scripts + marks + emoji + spaces * 3 + signs + list(META_SPECIALS[:14])
    if surrogates:
        pool += ["\ud800", "\udc00", "\ude00\ud83d"]
    texts = []
    for _ in range(num_texts):
        parts = draw.choices(pool, k=draw.randint(0, 12))
        if draw.random() < 0.3:
            parts.insert(
                draw.randint(0, len(parts)), chr(draw.choice((draw.randrange(0xD800), draw.randrange(65536, 0x110000))))
            )
        texts.append("".join(parts))
    return texts


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


def refusal(code, call, *args, **kwargs) -> str:
    """Return the message of the error that a call ends in, having checked what holds for all of them."""
    with pytest.raises(VLMError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code
    assert len(caught.value.report) <= 300
    assert str(caught.value).isprintable()
    assert "0x7f" not in str(caught.value)
    return str(caught.value)


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


# --- tokenizer.model --------------------------------------------------------------------------------------------------


def test_saving_gives_metas_file_back(ours, tmp_path):
    assert ours.save(tmp_path / "new", format="meta") == [tmp_path / "new" / "tokenizer.model"]
    assert (tmp_path / "new" / "tokenizer.model").read_bytes() == META_FILE.read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tokenizer.model"]


def test_the_bytes_vocabulary_is_what_metas_tokenizer_reads_from_its_file(tmp_path):
    tokenizer = Tokenizer.bytes_only()
    [path] = tokenizer.save(tmp_path, format="meta")
    assert path.read_bytes().count(b"\n") == 256
    theirs, again = meta_module.Tokenizer(path), Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == theirs.n_words == tokenizer.image_marker_id == 512
    assert tokenizer.special_ids == theirs.special_tokens == again.special_ids
    for text in random_texts(seed=3, num_texts=500, surrogates=False):
        assert tokenizer.encode(text) == theirs.encode(text, bos=False, eos=False) == again.encode(text)
        assert tokenizer.encode(text) == list(text.encode())


def test_a_folder_is_searched_in_the_promised_order(small_json, tmp_path):
    original = tmp_path / "original"
    Tokenizer.bytes_only().save(original, format="meta")
    assert Tokenizer.from_folder(tmp_path).vocab_size == 512
    (tmp_path / "tokenizer.model").write_bytes(META_FILE.read_bytes())
    assert Tokenizer.from_folder(str(tmp_path)).vocab_size == 128_256
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_json))
    assert Tokenizer.from_folder(tmp_path).vocab_size == 263


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").mkdir()
    assert refusal("checkpoint_invalid", Tokenizer.from_folder, tmp_path / "model") == (
        "folder 'model' has no tokenizer; expected tokenizer.json, tokenizer.model or original/tokenizer.model; "
        "copy one there from where the checkpoint came from"
    )
    assert "'gone' is no file" in refusal("checkpoint_invalid", Tokenizer.from_model_file, tmp_path / "gone")


def without(lines: list[bytes], number: int) -> list[bytes]:
    return lines[: number - 1] + lines[number:]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda lines: [*lines, b"justonefield"], "line 257 of tokenizer.model is b'justonefield'; expected base64"),
        (lambda lines: [*lines, b"YWI= 256 x"], "line 257 of tokenizer.model is b'YWI= 256 x'"),
        (lambda lines: [*lines, b"YWI 256"], "line 257 of tokenizer.model is b'YWI 256'"),
        (lambda lines: [*lines, b"Y!WI= 256"], "line 257 of tokenizer.model is"),
        (lambda lines: [*lines, b"YWI= two"], "line 257 of tokenizer.model is"),
        (lambda lines: [*lines, b"YWI= -1"], "line 257 of tokenizer.model is"),
        (lambda lines: [*lines, b"YWI= 1" + b"0" * 5000], "line 257 of tokenizer.model is"),
        (lambda lines: [*lines, b"= 256"], "line 257 of tokenizer.model is"),
        (lambda lines: [*lines, lines[65]], "line 257 of tokenizer.model has token b'A' again"),
        (lambda lines: [*lines, b"YWI= 255"], "tokenizer.model has 257 tokens, but rank 256 not once"),
        (lambda lines: [*lines, b"YWI= 257"], "tokenizer.model has 257 tokens, but rank 256 not once"),
        (lambda lines: without(lines, 11), "tokenizer.model has 255 tokens, but rank 10 not once"),
        (lambda lines: without(lines, 256), "the tokenizer lacks 1 of the 256 single bytes, 0xff first"),
        (lambda lines: [b"YWI= 10", *without(lines, 11)], "the tokenizer lacks 1 of the 256 single bytes, 0x0a first"),
        (lambda lines: [], "the tokenizer lacks 256 of the 256 single bytes, 0x00 first"),
        (lambda lines: [b"\n\x07\n\0\x12", *lines], "tokenizer.model is binary, perhaps of SentencePiece (Llama 2)"),
    ],
)
def test_a_broken_model_file_is_refused(tmp_path, change, found):
    lines = Tokenizer.bytes_only().files("meta")["tokenizer.model"].splitlines()
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n".join(change(lines)))
    message = refusal("checkpoint_invalid", Tokenizer.from_model_file, path)
    assert message.startswith(found)
    assert message.endswith("; take the file again from where the checkpoint came from")


def test_order_of_lines_line_ends_and_empty_lines_do_not_matter(tmp_path):
    lines = Tokenizer.bytes_only().files("meta")["tokenizer.model"].splitlines()
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\r\n\r\n".join(reversed(lines)) + b"\n\n")
    assert Tokenizer.from_model_file(path).ranks == Tokenizer.bytes_only().ranks
    assert list(Tokenizer.from_model_file(path).encode("hé")) == list("hé".encode())


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "tokenizer.model"
    with open(path, "wb") as file:
        file.truncate(200 * 2**20)
    found = "'tokenizer.model' has 209715200 bytes; expected at most 134217728"
    assert refusal("checkpoint_invalid", Tokenizer.from_model_file, path).startswith(found)


def test_flipped_bytes_load_or_are_refused_but_never_crash(small_json, tmp_path):
    draw = random.Random(4)
    files = {"tokenizer.model": Tokenizer.bytes_only().files("meta")["tokenizer.model"]}
    files["tokenizer.json"] = json.dumps(small_json).encode()
    codes = []
    for name, content in files.items():
        for number in range(300):
            broken = bytearray(content)
            for _ in range(draw.randint(1, 3)):
                broken[draw.randrange(len(broken))] = draw.randrange(256)
            path = tmp_path / name
            path.write_bytes(broken if number % 4 else content[: draw.randrange(len(content))])
            try:
                Tokenizer.from_model_file(path) if name == "tokenizer.model" else Tokenizer.from_json_file(path)
            except VLMError as error:
                codes.append(error.code)
    assert len(codes) > 300
    assert set(codes) == {"checkpoint_invalid"}


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlm.tokenizer_files.disk.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Tokenizer.bytes_only().save(tmp_path, format="meta")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    assert (tmp_path / "tokenizer.model").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"text_ids": {"word": 513}}, "1 added words, 'word' first"),
        ({"pattern": GPT2_PATTERN}, "the pattern is not Llama 3's"),
        ({"image_marker_id": 600}, "the image marker's id is 600, not 512"),
        ({"ranks": BYTES.ranks | {b"ab": 700}}, "its 257 tokens have ids up to 700"),
        (
            {"special_ids": {**BYTES.special_ids, "<|im_start|>": 513}},
            "special token '<|im_start|>' has id 513",
        ),
        ({"special_ids": {**BYTES.special_ids, "<|eom_id|>": 513}}, "special token '<|eom_id|>' has id 513"),
    ],
    ids=[
        "added words",
        "another pattern",
        "another marker",
        "a gap in the ids",
        "another special token",
        "a special token elsewhere",
    ],
)
@pytest.mark.parametrize("format", ["hf", "meta"])
def test_no_file_is_written_that_would_say_something_else(tmp_path, changes, found, format):
    tokenizer = Tokenizer(**{"ranks": BYTES.ranks, "special_ids": BYTES.special_ids, **changes})
    message = refusal("checkpoint_invalid", tokenizer.save, tmp_path / "new", format=format)
    assert (
        message
        == refusal("checkpoint_invalid", tokenizer.files, format)
        == (
            f"the tokenizer cannot be written as tokenizer.model ({found}); expected Meta's pattern and special tokens and "
            "no added words; write its tokenizer.json with the library it came from"
        )
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("format", ["gguf", None, ["hf"]])
def test_a_format_of_another_name_is_refused(tmp_path, format):
    message = refusal("invalid_request", BYTES.save, tmp_path / "new", format=format)
    assert message == f'format is {format!r}; give "hf" or "meta"'
    assert not (tmp_path / "new").exists()


def test_copies_and_pickles_encode_the_same():
    tokenizer = Tokenizer.bytes_only()
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.encode("hé", bos=True) == tokenizer.encode("hé", bos=True)
        assert twin.special_ids == tokenizer.special_ids


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


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


@pytest.fixture
def small_json():
    """A valid `tokenizer.json` in little: 256 bytes, two merges, the special tokens Llama's prompts need."""
    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"ab": 256, "abc": 257}
    specials = [{"id": 258 + i, "content": name, "special": True} for i, name in enumerate(REQUIRED_SPECIALS)]
    split = {"type": "Split", "pattern": {"Regex": LLAMA_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", ["ab", "c"]], "ignore_merges": True},
    }


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


# --- the tokenizer.json that is written for a tokenizer.model ---------------------------------------------------------


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


def test_the_written_vocabulary_and_merges_are_those_of_transformers_converter(written, hf):
    ours, twin = (json.loads((folder / "tokenizer.json").read_bytes()) for folder in (written, hf[1]))
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
    twin = tokenizers.Tokenizer.from_buffer(tokenizer.files("hf")["tokenizer.json"])
    for text in texts:
        assert tokenizer.encode(text) == twin.encode(text, add_special_tokens=False).ids
