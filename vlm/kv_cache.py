"""The key/value cache of self-attention: a value that is passed in and returned.

Its memory is allocated once, with a fixed shape, so that a decode step can be compiled and captured. Writing goes
into that memory: a cache that was passed in is used up, the returned one goes on.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vlm.config import DecoderConfig


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

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def positions(self, num_new: int) -> Tensor:
        """Return the positions [b, s] of the next `num_new` tokens of each row."""
        return self.lengths[:, None] + torch.arange(num_new, device=self.lengths.device)

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Store keys and values [b, g, s, e] of one layer at `positions` [b, s]."""
        if len(positions) == 1:
            # A single row is filled up to `max_length`: one block, which a CPU writes in a third of the time.
            for kept, new in ((self.keys, keys), (self.values, values)):
                kept[layer].narrow(2, self.max_length, positions.shape[1]).copy_(new)
            return
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        # The two index tensors are apart, so the indexed shape is [b, s, g, e].
        self.keys[layer][rows, :, positions] = keys.transpose(1, 2)
        self.values[layer][rows, :, positions] = values.transpose(1, 2)

    def advanced(self, num_new: Tensor | None, num_positions: int) -> "KVCache":
        """Return the cache filled by `num_new` [b] more tokens a row (None: by `num_positions` in every row).

        `num_positions` is what was written; in a row shorter than the others the rest is overwritten later.
        """
        lengths = self.lengths + (num_positions if num_new is None else num_new)
        return self._replace(lengths=lengths, max_length=self.max_length + num_positions)

    def put(self, row: int, source: "KVCache", source_row: int, length: int) -> None:
        """Copy the first `length` positions of a row of `source` into `row`."""
        self.keys[:, row, :, :length] = source.keys[:, source_row, :, :length]
        self.values[:, row, :, :length] = source.values[:, source_row, :, :length]

    def kept(self, order: list[int]) -> "KVCache":
        """Return the cache of the rows that go on, in `order` (see `close_up`), in the same memory."""
        keys, values = (move_rows(x, order) for x in (self.keys, self.values))
        lengths = self.lengths[order]
        return KVCache(keys, values, lengths, int(lengths.max()))

    def clear(self, row: int) -> None:
        """Make a row zeros again, as it has to be when numbers that are none were written into it."""
        self.keys[:, row] = 0
        self.values[:, row] = 0

    def repeated(self, times: int) -> "KVCache":
        """Return a copy with every row `times` times over, for several continuations of one prompt."""
        keys, values = (x.repeat_interleave(times, dim=1) for x in (self.keys, self.values))
        return KVCache(keys, values, self.lengths.repeat_interleave(times), self.max_length)


def empty_cache(
    config: DecoderConfig, batch_size: int, capacity: int, *, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Return a cache with room for `capacity` positions in each of `batch_size` rows."""
    shape = (config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_dim)
    # Zeros, not empty: what lies past a row's length is masked, but NaN would leak through a mask.
    keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    return KVCache(keys, values, torch.zeros(batch_size, dtype=torch.int64, device=device), 0)


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
