"""JSON-lines files in which any line can be had at once, without holding the file in memory."""

import json
import os
from pathlib import Path

import numpy as np

from vlm.errors import VLMError


class JsonLines:
    """The lines of one file that hold anything, by their place."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._starts, self._numbers = _index(self.path)
        except OSError as error:
            raise VLMError(
                "invalid_request", f"{self.path.name} cannot be read: {error.strerror}; give a file of JSON lines"
            ) from None

    def __len__(self) -> int:
        return len(self._numbers)

    def name(self, place: int) -> str:
        """Return what a line is called where it brings no id of its own."""
        return f"{self.path.name}:{self._numbers[place]}"

    def __getitem__(self, place: int) -> object:
        """Return what a line holds. Raises: VLMError for what is no JSON."""
        start, end = self._starts[place]
        try:
            with open(self.path, "rb") as file:
                file.seek(int(start))
                return json.loads(file.read(int(end - start)))
        except (OSError, ValueError, RecursionError) as error:
            raise VLMError("invalid_request", f"the line is no JSON ({error!s:.90}); write one object a line") from None


def _index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the (start, end) of each line that is not blank, in bytes, and its number from 1."""
    spans, numbers, start, number = [], [], 0, 0
    with open(path, "rb") as file:
        while line := file.readline():
            number += 1
            if line.strip():
                spans.append((start, start + len(line)))
                numbers.append(number)
            start += len(line)
    return np.array(spans, dtype=np.int64).reshape(-1, 2), np.array(numbers, dtype=np.int64)
