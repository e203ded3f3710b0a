"""Tokenizers made from texts: byte-pair encoding, and one id a character."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlm.errors import VLMError
from vlm.packages import needed
from vlm.tokenizer import Tokenizer
from vlm.tokenizer_files import JSON_FILE
from vlm.tokenizer_files.json_reader import parse_json_file
from vlm.tokenizer_files.json_writer import write_json_files
from vlm.tokenizer_files.llama3 import LLAMA_PATTERN, meta_special_ids
from vlm.training.data.layouts import read_sample
from vlm.training.data.samples import sample_text
from vlm.training.data.source import open_rows

NUM_BYTES = 256


def read_texts(path: str) -> Iterator[str]:
    """Yield what each sample at `path` says: of text files, and of all that can be trained on.

    Raises: VLMError where a sample cannot be read.
    """
    rows = open_rows(path)
    for place in range(len(rows)):
        try:
            yield sample_text(read_sample(rows[place], Path()))
        except VLMError as error:
            raise VLMError(error.code, f"{rows.name(place)!s:.80}: {error.message}") from None


def train_bpe(texts: Iterable[str], num_tokens: int) -> Tokenizer:
    """Return a tokenizer of Llama 3's kind whose merges are learned from `texts`.

    It has `num_tokens` tokens, the 256 bytes among them, and Meta's special tokens behind these; fewer tokens where the
    texts have no pair left to merge. Text is split by Llama 3's pattern, which no merge crosses.
    """
    if num_tokens < NUM_BYTES:
        raise VLMError("invalid_request", f"the size is {num_tokens}; expected at least {NUM_BYTES}, for all bytes")
    tokenizers = needed("tokenizers", "a trained tokenizer")
    steps = tokenizers.pre_tokenizers
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = steps.Sequence(
        [
            steps.Split(tokenizers.Regex(LLAMA_PATTERN), "isolated"),
            steps.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=num_tokens, initial_alphabet=steps.ByteLevel.alphabet(), show_progress=False
    )
    learned.train_from_iterator((_storable(text) for text in texts), trainer)
    # Reading it checks that tiktoken's rule, the lowest id first, does what these merges do.
    ranks = parse_json_file(learned.to_str().encode())["ranks"]
    return Tokenizer(ranks, meta_special_ids(len(ranks)))


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer that gives each character of `texts` one id, and spells any other by its bytes."""
    letters = {letter for text in texts for letter in _storable(text)}
    ranks = {bytes([value]): value for value in range(NUM_BYTES)}
    for letter in sorted(letters):
        ranks.setdefault(letter.encode(), len(ranks))
    file = json.loads(write_json_files(ranks)[JSON_FILE])
    # Every character is a piece of its own, so that nothing is ever merged across two.
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"[\s\S]"}
    content = json.dumps(file, ensure_ascii=False).encode()
    return Tokenizer(**parse_json_file(content), json_file=content)


def _storable(text: str) -> str:
    """Return a text with U+FFFD for lone surrogates, as the tokenizer reads it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
