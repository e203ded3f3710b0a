"""The words of a reply, and the tokens each is made of."""

import re
from typing import NamedTuple

from vlm.tokenizer import Tokenizer

_NUMBER = re.compile(r"[^\w\s]{0,2}\d[\d.,:/]*\s?%?[^\w\s]{0,2}$")


class Word(NamedTuple):
    """A run without white space in it."""

    text: str
    tokens: tuple[int, ...]
    """Places in the reply's token ids."""

    @property
    def is_number(self) -> bool:
        return _NUMBER.match(self.text) is not None


def words_of(tokenizer: Tokenizer, token_ids: list[int]) -> list[Word]:
    """Return the words of `token_ids` in their order.

    A token that ends one word and begins the next counts for both.
    """
    content, owners = bytearray(), []
    for place, token_id in enumerate(token_ids):
        piece = tokenizer.decode_single_token_bytes(token_id)
        content += piece
        owners += [place] * len(piece)
    found = []
    # In bytes, so that a character that several tokens spell belongs to all of them.
    for run in re.finditer(rb"\S+", bytes(content)):
        text = run[0].decode("utf-8", errors="replace")
        found.append(Word(text, tuple(sorted(set(owners[run.start() : run.end()])))))
    return found


def first_number(words: list[Word]) -> int | None:
    """Return the place of the first word that is a number."""
    return next((place for place, word in enumerate(words) if word.is_number), None)
