"""Tokenizers made from texts: their ids are those of the libraries that read their files."""

import json
import random
import sys

import pytest
import tokenizers
from click.testing import CliRunner
from tiktoken import Encoding
from tiktoken.load import load_tiktoken_bpe

from tests.training_rows import write_jsonl
from vlm import Tokenizer, VLMError
from vlm.cli import main
from vlm.tokenizer import StreamDecoder
from vlm.tokenizer_files.llama3 import LLAMA_PATTERN
from vlm.training import tokenizer_training
from vlm.training.tokenizer_training import character_tokenizer, train_bpe

CORPUS = "low low low low low lowest lowest newer newer newer newer newer newer wider wider wider"
TEXT = (
    "The keeper of the lighthouse wrote down every ship's name: 1,024 of them in 2017.\n\n"
    "Der Wärter des Leuchtturms schrieb jedes Schiff auf; naïve façade, Ελλάδα, 灯塔 on the shore. 😀\n"
) * 20


def random_texts(count: int = 300) -> list[str]:
    rng = random.Random(0)
    pieces = [*TEXT.split(" "), "\n", "  ", "\t", "<|eot_id|>", "'s", "12345", "\x00", "e\u0301", "\U0001f600"]
    letters = [chr(rng.randrange(0x20, 0x3000)) for _ in range(200)]
    return ["".join(rng.choice(pieces + letters) for _ in range(rng.randrange(20))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe([TEXT], 350)


def test_lower_becomes_low_and_er():
    """Sennrich et al. 2016, algorithm 1 and figure 1: a word never seen is spelt by what was."""
    learned = train_bpe([CORPUS], 259)
    assert [learned.decode([token_id]) for token_id in range(256, 259)] == ["er", "lo", "low"]
    assert [learned.decode([token_id]) for token_id in learned.encode("lower")] == ["low", "er"]


def test_ids_are_those_of_the_tokenizers_library_as_it_was_trained(monkeypatch):
    """What the library learned is kept on its way to us, and asked beside ours."""
    seen = []
    parse = tokenizer_training.parse_json_file
    monkeypatch.setattr(tokenizer_training, "parse_json_file", lambda content: seen.append(content) or parse(content))
    ours = train_bpe([TEXT], 350)
    theirs = tokenizers.Tokenizer.from_str(seen[0].decode())
    for text in random_texts():
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("characters", [False, True])
def test_the_files_say_the_same_to_us_and_to_the_libraries(tmp_path, trained, characters):
    made = character_tokenizer([TEXT]) if characters else trained
    made.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in random_texts():
        assert again.encode(text) == made.encode(text)
        if "<|" not in text:
            assert theirs.encode(text, add_special_tokens=False).ids == made.encode(text)
    assert (again.special_ids["<|eot_id|>"], again.image_marker_id) == (made.eot_id, made.image_marker_id)


def test_tiktoken_reads_what_is_exported(tmp_path, trained):
    trained.save(tmp_path, format="meta")
    ranks = load_tiktoken_bpe(str(tmp_path / "tokenizer.model"))
    theirs = Encoding("theirs", pat_str=LLAMA_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert len(ranks) == 350
    for text in random_texts(100):
        assert trained.encode(text) == theirs.encode(text, disallowed_special=())


def test_training_is_the_same_every_time_and_however_the_text_is_cut(trained):
    assert train_bpe(iter([TEXT]), 350).ranks == trained.ranks
    lines = TEXT.splitlines(keepends=True)
    assert train_bpe(lines, 300).encode("lighthouse") == train_bpe([TEXT], 300).encode("lighthouse")


def test_a_small_text_gives_what_it_has(trained):
    assert len(train_bpe(["aa"], 1000).ranks) == 257
    assert len(train_bpe([], 256).ranks) == 256
    with pytest.raises(VLMError, match="the size is 255; expected at least 256"):
        train_bpe([TEXT], 255)


def test_a_character_is_one_id_and_a_strange_one_its_bytes():
    letters = character_tokenizer(["Wärter 灯塔 😀", "\ud800"])
    assert [letters.decode([one]) for one in letters.encode("är灯😀")] == ["ä", "r", "灯", "😀"]
    assert letters.count("é") == 2
    assert letters.count("€") == 3
    for text in random_texts(100):
        assert letters.decode(letters.encode(text)) == text
    stream = StreamDecoder(letters)
    assert "".join(stream.feed([one]) for one in letters.encode("naïve 塔")) == "naïve 塔"
    assert letters.vocab_size == len(letters.ranks) + 256


def test_special_tokens_are_no_text(trained):
    for made in (trained, character_tokenizer([TEXT])):
        ids = made.encode("<|eot_id|><|image|>")
        assert max(ids) < len(made.ranks)
        assert made.decode(ids) == "<|eot_id|><|image|>"


# The command


def test_the_command_learns_from_text_and_from_samples(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    talk = [{"role": "user", "content": "zyzzyva " * 9}, {"role": "assistant", "content": "yes"}]
    write_jsonl(tmp_path / "talk.jsonl", [{"messages": talk}] * 9)
    files = [str(tmp_path / name) for name in ("book.txt", "talk.jsonl")]
    arguments = ["tokenizer", *files, "--out", str(tmp_path / "made"), "--size", "350", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["tokens"], report["files"]) == (350, ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
    made = Tokenizer.from_folder(tmp_path / "made")
    assert made.count(" zyzzyva") == 1
    assert report["ids"] < report["chars"] / 2
    done = CliRunner().invoke(main, [*arguments[:-3], "--characters"])
    assert "1.00 characters each" in done.stdout, done.output
    assert Tokenizer.from_folder(tmp_path / "made").count("lighthouse") == 10


def test_a_sample_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "book.jsonl").write_text('{"text": "a"}\n{"text"\n')
    done = CliRunner().invoke(main, ["tokenizer", str(tmp_path / "book.jsonl"), "--out", str(tmp_path / "made")])
    assert done.exit_code == 1
    assert "book.jsonl:2: the sample is no JSON" in done.stderr
    assert not (tmp_path / "made").exists()


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(VLMError, match=r"needs tokenizers, which is not installed; run: pip install tokenizers"):
        train_bpe([TEXT], 300)
