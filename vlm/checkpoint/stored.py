"""Tensors that still lie in a file: what is known of them before any weight is read, and how they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.checkpoint.files import invalid


class MappedTensor(NamedTuple):
    """A tensor whose values are the pages of its file. What is written into it is in memory alone, not in the file."""

    values: Tensor
    memory: mmap
    """Of the whole file."""
    offset: int
    """Where in it the values begin, in bytes."""


@dataclass(eq=False)
class StoredTensor:
    """One tensor of a checkpoint file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    place: object
    """What equals only for tensors that share their bytes."""

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def copy_to(self, out: Tensor) -> None:
        """Write the values into `out`, a tensor or a view of the same shape, of any dtype, on any device."""
        raise NotImplementedError

    def load(self) -> Tensor:
        """Return the values on the CPU, in memory of their own."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.copy_to(out)
        return out

    def map(self) -> MappedTensor | None:
        """Return the values where they lie in their file; None where that cannot be had."""
        return None


class QuantizedTensor(StoredTensor):
    """A weight that is stored in few bits; read as any other it is expanded."""


class SplitTensor(StoredTensor):
    """A tensor of which every file of a model-parallel checkpoint holds one part."""

    def __init__(self, parts: Sequence[StoredTensor], dim: int):
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        super().__init__(tuple(shape), parts[0].dtype, tuple(part.place for part in parts))
        self.parts = tuple(parts)
        self.dim = dim

    def copy_to(self, out: Tensor) -> None:
        start = 0
        for part in self.parts:
            part.copy_to(out.narrow(self.dim, start, part.shape[self.dim]))
            start += part.shape[self.dim]


class ComputedTensor(StoredTensor):
    """A tensor that does not exist until it is read: what it is computed from is let go after it."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, compute: Callable[[], Tensor]):
        super().__init__(tuple(shape), dtype, object())
        self.compute = compute

    def copy_to(self, out: Tensor) -> None:
        out.copy_(self.compute())

    def load(self) -> Tensor:
        return self.compute()


Parts = dict[str, StoredTensor]
"""The tensors of a file that stand for one weight, by what they are."""


def join_parts(
    weights: Mapping[str, Parts],
    join: Callable[[Parts, tuple[int, ...]], StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
) -> dict[str, StoredTensor]:
    """Return one tensor for the parts of each weight, by the weight's name.

    join: makes it from the parts and the weight's shape, and raises ValueError where these do not fit together.
    shapes: those of the weights, by name.
    name: of the folder.

    Raises VLMError that lists every weight of which a part is missing or misshapen.
    """
    joined, wrong = {}, []
    for weight, parts in weights.items():
        try:
            joined[weight] = join(parts, shapes.get(weight, ()))
        except ValueError as error:
            wrong.append(f"{weight.removesuffix('.weight')}: {error}")
    if wrong:
        raise invalid(
            f"{name} has {len(wrong)} quantised weights that do not fit; download them again: {'; '.join(wrong)}"
        )
    return joined
