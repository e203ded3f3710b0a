"""Files whose samples are stretches of bytes: JSON lines, a JSON array, plain text.

Where the samples lie is found in one pass and kept, 24 bytes a sample; each is read when it is asked for.
"""

import json
import mmap
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm.errors import VLMError

MIN_PASSAGE_BYTES, MAX_PASSAGE_BYTES = 1000, 4000


class Span(NamedTuple):
    """Where a sample lies."""

    start: int
    end: int
    """In bytes of the file."""
    number: int
    """Its line, or its place in the array."""


class SpanFile:
    """A file in which any sample can be had at once, without holding the file in memory."""

    groups = None
    label = "{}:{}"

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.title, self.paths = self.path.name, [self.path]
        numbers = array("q")
        try:
            for span in self._find():
                numbers.extend(span)
        except OSError as error:
            raise VLMError(
                "invalid_request", f"{self.title!s:.60} cannot be read: {error.strerror}; give a file of samples"
            ) from None
        self._spans = np.frombuffer(numbers, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._spans)

    def name(self, place: int) -> str:
        return self.label.format(self.title, self._spans[place, 2])

    def __getitem__(self, place: int) -> object:
        start, end = self._spans[place, :2].tolist()
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return self._parse(file.read(end - start))
        except OSError as error:
            raise VLMError("invalid_request", f"the sample cannot be read: {error.strerror}; is it gone?") from None

    def _find(self) -> Iterator[Span]:
        raise NotImplementedError

    def _parse(self, content: bytes) -> object:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise VLMError(
                "invalid_request", f"the sample is no JSON ({error!s:.90}); write an object a sample"
            ) from None


class JsonLines(SpanFile):
    """A sample a line; blank lines are none."""

    def _find(self) -> Iterator[Span]:
        start = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Span(start, start + len(line), number)
                start += len(line)


class JsonArray(SpanFile):
    """A sample an object of one array, as LLaVA and LLaMA-Factory write them."""

    label = "{}[{}]"
    # A string is stepped over as a whole, whatever brackets it holds.
    _SIGNS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)

    def _find(self) -> Iterator[Span]:
        depth = number = start = 0
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for sign in self._SIGNS.finditer(content):
                letter = content[sign.start()]
                if letter == ord('"') and sign.end() == sign.start() + 1:
                    # A string that never ends.
                    break
                if letter in b"[{":
                    depth += 1
                    start = sign.start() if depth == 2 else start
                elif letter in b"]}":
                    depth -= 1
                    if depth == 1:
                        yield Span(start, sign.end(), number)
                        number += 1
        if depth:
            raise VLMError(
                "invalid_request",
                f"the array in {self.title!s:.60} is not closed; the file is cut off; fetch it again",
            )


class TextPassages(SpanFile):
    """A sample a passage of plain text, as long as a page of a book.

    It ends with the first blank line after 1,000 bytes or, where none comes, with the first line that ends past 4,000.
    """

    def _find(self) -> Iterator[Span]:
        start = end = number = 0
        first, holds_text = 1, False
        with open(self.path, "rb") as file:
            for line in file:
                number, end = number + 1, end + len(line)
                holds_text = holds_text or bool(line.strip())
                if end - start >= (MAX_PASSAGE_BYTES if line.strip() else MIN_PASSAGE_BYTES) and holds_text:
                    yield Span(start, end, first)
                    start, first, holds_text = end, number + 1, False
        if holds_text:
            yield Span(start, end, first)

    def _parse(self, content: bytes) -> object:
        try:
            return {"text": content.decode("utf-8").strip("\r\n")}
        except UnicodeDecodeError as error:
            raise VLMError("invalid_request", f"the passage is no UTF-8 ({error.reason}); convert the file") from None
