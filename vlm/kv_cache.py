"""The key/value cache of self-attention: a value that is passed in and returned.

Its memory is allocated once, with a fixed shape, so that a decode step can be compiled and captured. Writing goes
into that memory: a cache that was passed in is used up, the returned one goes on.

In int8 every key and every value of a head (a vector of `e` numbers) is whole numbers from -127 to 127 and a scale of
its own, which takes (e + 2) / 2e of the memory that bfloat16 takes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.config import DecoderConfig
from vlm.native import in_large_pages

# As wide in range as float32, and codes are chosen for the scale as it is after rounding: nothing is lost by it.
SCALE_DTYPE = torch.bfloat16
_MAX_CODE = 127
# Positions by which room grows where it is to serve again, so that what is a little longer needs no new memory.
CAPACITY_STEP = 256


class LayerKV(NamedTuple):
    """The keys and values of one layer as they are kept."""

    keys: Tensor
    """[b, g, l, e]"""
    values: Tensor
    """[b, g, l, e]"""
    scales: tuple[Tensor, Tensor] | None = None
    """[b, g, l] of the keys and of the values; None unless these are int8."""


class KVCache(NamedTuple):
    """Keys and values of every layer, and how far each row is filled."""

    keys: Tensor
    """[layers, b, g, l, e]"""
    values: Tensor
    """[layers, b, g, l, e]"""
    lengths: Tensor
    """[b] int64: positions filled."""
    max_length: int
    """The largest of `lengths`, known without asking the device."""
    scales: tuple[Tensor, Tensor] | None = None
    """[layers, b, g, l] of the keys and of the values; None unless these are int8."""
    is_bound: bool = False
    """Whether `max_length` is merely no less than the largest of `lengths`, which the device alone knows."""

    @property
    def is_even(self) -> bool:
        """Whether every row is known to be filled up to `max_length`."""
        return len(self.lengths) == 1 and not self.is_bound

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All that is kept of the positions, each [layers, b, g, l, ...]."""
        return (self.keys, self.values, *(self.scales or ()))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "KVCache":
        """Return the cache with each of its parts replaced by what `function` makes of it."""
        keys, values, *scales = map(function, self.parts)
        return self._replace(keys=keys, values=values, scales=tuple(scales) or None)

    def read(self, layer: int, end: int) -> LayerKV:
        """Return the first `end` positions of one layer."""
        keys, values, *scales = (part[layer, :, :, :end] for part in self.parts)
        return LayerKV(keys, values, tuple(scales) or None)

    def positions(self, num_new: int) -> Tensor:
        """Return the positions [b, s] of the next `num_new` tokens of each row."""
        return self.lengths[:, None] + torch.arange(num_new, device=self.lengths.device)

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Store keys and values [b, g, s, e] of one layer at `positions` [b, s]."""
        new = (keys, values)
        if self.scales is not None:
            # Both at once: on a CPU it is calls that take the time of a decode step, not numbers.
            codes, scales = quantize_vectors(torch.stack(new))
            new = (*codes, *scales)
        if self.is_even:
            # One block, which a CPU writes in a third of the time.
            for part, x in zip(self.parts, new, strict=True):
                part[layer].narrow(2, self.max_length, positions.shape[1]).copy_(x)
            return
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        for part, x in zip(self.parts, new, strict=True):
            # The two index tensors are apart, so the indexed shape is [b, s, g, ...].
            part[layer][rows, :, positions] = x.transpose(1, 2)

    def advanced(self, num_new: Tensor | None, num_positions: int) -> "KVCache":
        """Return the cache filled by `num_new` [b] more tokens a row (None: by `num_positions` in every row).

        `num_positions` is what was written; in a row shorter than the others the rest is overwritten later.
        """
        lengths = self.lengths + (num_positions if num_new is None else num_new)
        return self._replace(lengths=lengths, max_length=self.max_length + num_positions)

    def cut(self, length: int) -> "KVCache":
        """Return the cache of a single row filled up to `length` alone; what lies past that is overwritten later."""
        return self._replace(lengths=self.lengths + (length - self.max_length), max_length=length)

    def put(self, row: int, source: "KVCache", source_row: int, length: int) -> None:
        """Copy the first `length` positions of a row of `source` into `row`."""
        for part, other in zip(self.parts, source.parts, strict=True):
            part[:, row, :, :length] = other[:, source_row, :, :length]

    def kept(self, order: list[int]) -> "KVCache":
        """Return the cache of the rows that go on, in `order` (see `close_up`), in the same memory."""
        lengths = self.lengths[order]
        moved = self.mapped(lambda part: move_rows(part, order))
        return moved._replace(lengths=lengths, max_length=int(lengths.max()))

    def clear(self, row: int) -> None:
        """Make a row zeros again, as it has to be when numbers that are none were written into it."""
        for part in self.parts:
            part[:, row] = 0

    def alone(self, row: int) -> "KVCache":
        """Return the cache of one of rows that are all filled equally far, in the same memory."""
        one = self.mapped(lambda part: part[:, row : row + 1])
        return one._replace(lengths=self.lengths[row : row + 1])

    def repeated(self, times: int) -> "KVCache":
        """Return a copy with every row `times` times over, for several continuations of one prompt."""
        repeated = self.mapped(lambda part: part.repeat_interleave(times, dim=1))
        return repeated._replace(lengths=self.lengths.repeat_interleave(times))


def empty_cache(
    config: DecoderConfig, batch_size: int, capacity: int, *, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Return a cache with room for `capacity` positions in each of `batch_size` rows; `dtype` may be int8."""
    shape = (config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_dim)
    # Zeros, not empty: what lies past a row's length is masked, but NaN would leak through a mask.
    keys, values = (in_large_pages(torch.zeros(shape, dtype=dtype, device=device)) for _ in range(2))
    scales = None
    if dtype == torch.int8:
        scales = tuple(torch.zeros(shape[:-1], dtype=SCALE_DTYPE, device=device) for _ in range(2))
    return KVCache(keys, values, torch.zeros(batch_size, dtype=torch.int64, device=device), 0, scales)


def quantize_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x [..., e] as int8 codes of that shape and scales [...]: code · scale is at most half a scale off.

    A vector with a number that is none gets a scale that is none, and stays so.
    """
    x = x.float()
    # Never 0, not even for a vector of zeros: it divides. Rounded down, a scale is 1/256 less at most, which leaves the
    # largest number below 127.5 scales.
    scales = (x.abs().amax(-1) / _MAX_CODE).clamp_min_(torch.finfo(SCALE_DTYPE).tiny).to(SCALE_DTYPE)
    return (x / scales[..., None]).round_().to(torch.int8), scales


def dequantize_vectors(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes [..., e] times scales [...]: the codes are exact in every dtype, their product is rounded once."""
    return codes.to(dtype).mul_(scales.to(dtype)[..., None])


def close_up(places: set[int]) -> list[int]:
    """Return the places of rows that go on in the order that moves the fewest: the last ones fill the gaps.

    What stands at place i of the result moves to place i; nothing moves to where something is still to be read.
    """
    movers = iter(sorted(place for place in places if place >= len(places)))
    return [place if place in places else next(movers) for place in range(len(places))]


def move_rows(x: Tensor, order: list[int]) -> Tensor:
    """Move the rows of x [layers, b, ...] within its memory as `close_up` says and return the view of those."""
    # Rows that are one and the same memory are where they should be.
    if x.stride(1):
        for place, source in enumerate(order):
            if place != source:
                x[:, place] = x[:, source]
    return x[:, : len(order)]
