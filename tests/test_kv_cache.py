"""The cache as a value: where it writes, how far rows are filled, and what it leaves alone."""

import pytest
import torch
from torch import Tensor

from vlm.config import preset
from vlm.kv_cache import KVCache, empty_cache

CONFIG = preset("tiny").decoder
CAPACITY = 8


def empty(batch_size: int = 2, dtype: torch.dtype = torch.float32) -> KVCache:
    return empty_cache(CONFIG, batch_size, CAPACITY, dtype=dtype, device=torch.device("cpu"))


def new(batch_size: int, num_new: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return keys and values [b, g, s, e]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, batch_size, CONFIG.num_kv_heads, num_new, CONFIG.head_dim)
    return tuple(torch.randn(shape, generator=generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_cache_is_zeros_of_the_decoders_shape(dtype):
    cache = empty(3, dtype)
    for part in (cache.keys, cache.values):
        assert part.shape == (CONFIG.num_layers, 3, CONFIG.num_kv_heads, CAPACITY, CONFIG.head_dim)
        assert part.dtype == dtype
        assert (part == 0).all(), "NaN past a row's length would leak through the mask"
    assert (cache.capacity, cache.max_length, cache.lengths.tolist()) == (CAPACITY, 0, [0, 0, 0])


def test_a_write_lands_at_its_positions_in_its_layer_and_nowhere_else():
    cache = empty()
    keys, values = new(2, 3)
    cache.write(1, keys, values, cache.positions(3))
    for part, written in ((cache.keys, keys), (cache.values, values)):
        assert torch.equal(part[1, :, :, :3], written)
        assert (part[1, :, :, 3:] == 0).all()
        assert (part[[0, 2]] == 0).all()


def test_rows_of_other_lengths_write_each_at_its_own_end():
    cache = empty(3).advanced(torch.tensor([4, 1, 0]), 4)
    assert cache.positions(2).tolist() == [[4, 5], [1, 2], [0, 1]]
    keys, values = new(3, 2)
    cache.write(0, keys, values, cache.positions(2))
    for row, start in enumerate([4, 1, 0]):
        assert torch.equal(cache.keys[0, row, :, start : start + 2], keys[row])
        assert torch.equal(cache.values[0, row, :, start : start + 2], values[row])
        untouched = [place for place in range(CAPACITY) if place not in (start, start + 1)]
        assert (cache.keys[0, row, :, untouched] == 0).all()
        assert (cache.values[0, row, :, untouched] == 0).all()


def test_what_a_short_row_wrote_past_its_end_is_overwritten():
    cache = empty()
    keys, values = new(2, 3)
    cache.write(0, keys, values, cache.positions(3))
    cache = cache.advanced(torch.tensor([3, 1]), 3)
    later_keys, later_values = new(2, 2, seed=1)
    cache.write(0, later_keys, later_values, cache.positions(2))
    assert torch.equal(cache.keys[0, 1, :, :3], torch.cat([keys[1, :, :1], later_keys[1]], dim=1))
    assert torch.equal(cache.values[0, 0, :, :5], torch.cat([values[0], later_values[0]], dim=1))


def test_advancing_counts_every_row_or_each_its_own_and_changes_no_number_in_place():
    cache = empty()
    lengths = cache.lengths
    together = cache.advanced(None, 3)
    assert (together.lengths.tolist(), together.max_length) == ([3, 3], 3)
    apart = together.advanced(torch.tensor([2, 0]), 2)
    assert (apart.lengths.tolist(), apart.max_length) == ([5, 3], 5)
    assert (lengths.tolist(), cache.max_length, together.lengths.tolist()) == ([0, 0], 0, [3, 3])


def test_an_advanced_cache_goes_on_in_the_same_memory():
    cache = empty()
    assert cache.advanced(None, 1).keys.data_ptr() == cache.keys.data_ptr()
    assert cache.advanced(None, 1).capacity == CAPACITY


def test_a_repeated_cache_is_a_copy_with_each_row_several_times_over():
    cache = empty()
    cache.write(2, *new(2, 3), cache.positions(3))
    cache = cache.advanced(torch.tensor([3, 2]), 3)
    repeated = cache.repeated(3)
    assert repeated.lengths.tolist() == [3, 3, 3, 2, 2, 2]
    assert (repeated.max_length, repeated.capacity) == (3, CAPACITY)
    for row in range(6):
        assert torch.equal(repeated.keys[:, row], cache.keys[:, row // 3])
        assert torch.equal(repeated.values[:, row], cache.values[:, row // 3])
    before = cache.keys.clone()
    repeated.write(2, *new(6, 1), repeated.positions(1))
    assert torch.equal(cache.keys, before)
    assert not torch.equal(repeated.keys[2, 0], repeated.keys[2, 1])


@pytest.mark.parametrize("filled", [[8, 0], [0, 7]])
def test_writing_past_the_capacity_fails_instead_of_wrapping_round(filled):
    cache = empty().advanced(torch.tensor(filled), max(filled))
    with pytest.raises(IndexError):
        cache.write(0, *new(2, 2), cache.positions(2))
