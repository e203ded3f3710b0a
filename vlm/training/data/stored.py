"""What every kind of stored data gives: any sample by its place, and which samples are cheap to read together."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


class Groups(NamedTuple):
    """Samples that lie together on the disk and are read together."""

    sizes: np.ndarray
    """Samples of each group, in the order of their places."""
    at_once: int
    """How many groups may be held in memory."""


class Rows(Protocol):
    """The samples of one source, as they are stored."""

    title: str
    """What messages call it."""
    paths: list[Path]
    groups: Groups | None
    """None where any sample can be had at once."""

    def __len__(self) -> int: ...

    def name(self, place: int) -> str:
        """Return what a sample is called where it brings no id of its own."""

    def __getitem__(self, place: int) -> object:
        """Return what a sample holds. Raises: VLMError where it cannot be read."""


class Joined:
    """Several files as one."""

    groups = None

    def __init__(self, parts: list[Rows], title: str):
        self._parts, self.title = parts, title
        self.paths = [path for part in parts for path in part.paths]
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, place: int) -> str:
        part, inside = self._find(place)
        return part.name(inside)

    def __getitem__(self, place: int) -> object:
        part, inside = self._find(place)
        return part[inside]

    def _find(self, place: int) -> tuple[Rows, int]:
        number = int(np.searchsorted(self._ends, place, side="right"))
        return self._parts[number], place - int(self._ends[number - 1] if number else 0)


class Kept:
    """Of stored samples those at `places`, in ascending order."""

    def __init__(self, rows: Rows, places: np.ndarray):
        self._rows, self._places = rows, places
        self.title, self.paths = rows.title, rows.paths
        self.groups = rows.groups
        if rows.groups is not None:
            ends = np.searchsorted(places, np.cumsum(rows.groups.sizes))
            self.groups = rows.groups._replace(sizes=np.diff(ends, prepend=0))

    def __len__(self) -> int:
        return len(self._places)

    def name(self, place: int) -> str:
        return self._rows.name(int(self._places[place]))

    def __getitem__(self, place: int) -> object:
        return self._rows[int(self._places[place])]
