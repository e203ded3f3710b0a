"""What a key table is made of: our name, their name, and how the values are arranged over there."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from vlm.config import ModelConfig


class Layout(NamedTuple):
    """How a tensor of ours is arranged in another format."""

    to_theirs: Callable[[Tensor, ModelConfig], Tensor]
    to_ours: Callable[[Tensor, ModelConfig], Tensor] | None = None
    """None where `to_theirs` returns a view of ours: then the file is read straight into that view."""


SAME = Layout(lambda ours, config: ours)


class Key(NamedTuple):
    """One tensor of a file."""

    ours: str
    theirs: str
    layout: Layout = SAME
    split: int | None = None
    """The axis along which model-parallel files divide it; None where every file holds it whole."""
    alias: bool = False
    """A second copy of a tensor that has a key already: not needed, but where it is stored it must be equal."""


Rows = tuple[tuple, ...]
"""Rows of a table: `Key`'s fields in order, with {place} for a layer's place and format fields in the names."""


def fill(rows: Rows, **fields: object) -> Iterator[Key]:
    """Yield the keys of `rows` with their name fields filled in."""
    for ours, theirs, *rest in rows:
        yield Key(ours.format(**fields), theirs.format(**fields), *rest)
