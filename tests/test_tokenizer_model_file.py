"""`tokenizer.model` read, refused and written; which file of a folder is read, and which are saved."""

import json
import random

import llama_models.llama3.tokenizer as meta_module
import pytest

from tests.tokenizer_cases import BYTES, META_FILE, our_tokenizer, random_texts, refusal, small_json
from vlm.errors import VLMError
from vlm.tokenizer import Tokenizer
from vlm.tokenizer_files.json_reader import GPT2_PATTERN


@pytest.fixture(scope="module")
def ours():
    return our_tokenizer()


@pytest.fixture(name="small_json")
def fresh_small_json():
    return small_json()


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
    message = refusal("invalid_request", BYTES.save, tmp_path, format="meta")
    assert "cannot be written" in message
    assert "No space left on device" in message
    assert str(tmp_path) not in message
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
    expected = (
        f"the tokenizer cannot be written as tokenizer.model ({found}); expected Meta's pattern and special tokens "
        "and no added words; write its tokenizer.json with the library it came from"
    )
    assert refusal("checkpoint_invalid", tokenizer.save, tmp_path / "new", format=format) == expected
    assert refusal("checkpoint_invalid", tokenizer.files, format) == expected
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("format", "found"), [("gguf", "'gguf'"), (None, "None"), (["hf"], "of type list")])
def test_a_format_of_another_name_is_refused(tmp_path, format, found):
    message = refusal("invalid_request", BYTES.save, tmp_path / "new", format=format)
    assert message == f'format is {found}; give "hf" or "meta"'
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", [None, 3, b"folder", ["folder"], "", "a\0b"])
def test_a_path_that_is_none_is_refused(path):
    for call in (Tokenizer.from_folder, Tokenizer.from_model_file, Tokenizer.from_json_file, BYTES.save):
        assert "give the path of a file or folder" in refusal("invalid_request", call, path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        assert "cannot be written into" in refusal("invalid_request", BYTES.save, folder)
