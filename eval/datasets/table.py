"""What every format becomes: tables with named columns and rows, each from one file (or one annotated folder)."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.datasets.row import Row
from vlm.errors import VLMError

Kind = Literal["parquet", "tsv", "jsonl", "chartqa folder", "ai2d folder"]

_PARTS = {
    "val": "validation",
    "valid": "validation",
    "mini": "testmini",
    **{name: name for name in ("train", "dev", "validation", "test", "testdev", "testmini")},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Questions in one file."""

    kind: Kind
    path: Path
    """The file that messages name."""
    columns: tuple[str, ...]
    part: str | None
    """"train", "validation", "test", ... by the name of the file."""
    read: Callable[[Sequence[str]], Iterator[Row]]
    """Yields the rows; of a format that can skip columns, only those named are read."""
    error: VLMError | None = None
    """Why the file cannot be opened; that matters only if its part is wanted."""


def part_named(name: str) -> str | None:
    """Return the part of a data set that a name stands for ("val" is "validation"), or None for another word."""
    return _PARTS.get(name.lower())


def part_of(path: Path) -> str | None:
    """Return the part that a file's name says, or else its folder's; None when neither does or the name says two."""
    parts = {part for word in re.split(r"[^A-Za-z]+", path.stem) if (part := part_named(word))}
    return parts.pop() if len(parts) == 1 else None if parts else part_named(path.parent.name)
