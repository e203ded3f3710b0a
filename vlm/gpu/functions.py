"""What the kernels do, called with tensors. Whether they may be is said by `support.py`."""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

# Of the weights a program multiplies a row with, at a time.
_ROWS_EACH, _COLS_EACH = 4, 1024
# Keys a program attends to, and parts of them at most: what they find is joined by one program.
_PART, _MOST_PARTS, _KEYS_EACH = 256, 128, 64
# Of heads.
WIDTHS = (16, 32, 64, 128, 256)
# A product's dot needs so many rows at least.
_LEAST_QUERIES = 16


class Weights(NamedTuple):
    """The weights [n, cols] of a linear layer, as the kernels read them."""

    codes: Tensor
    """[n, cols] of a float or int8; at 4 bits uint8 [n, cols / 2], the number of the even column plus 8 in the lower
    half."""
    scales: Tensor | None = None
    """[n, 1] at 8 bits, [n, groups] at 4."""
    zeros: Tensor | None = None
    """[n, groups] in the scales' dtype, at 4 bits."""
    group_size: int = 0
    """Columns that share a scale, at 4 bits."""

    @property
    def bits(self) -> int:
        """16 for every float."""
        return {torch.int8: 8, torch.uint8: 4}.get(self.codes.dtype, 16)

    @property
    def num_rows(self) -> int:
        return self.codes.shape[0]

    @property
    def kind(self) -> tuple:
        """Equal where weights can be multiplied in one call."""
        return self.codes.dtype, self.group_size, self.zeros is None


def on_its_gpu(function: Callable) -> Callable:
    """Return a function that launches kernels, on the GPU of its first tensor and not on the current one."""

    @functools.wraps(function)
    def launched(x: Tensor, *given, **named) -> Tensor:
        with torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext():
            return function(x, *given, **named)

    return launched


@on_its_gpu
def product(
    x: Tensor,
    weights: Sequence[Weights],
    *,
    norm: tuple[Tensor, float] | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """Return x [cols] times up to three weights of one kind, side by side, [n].

    norm: weight [cols] and epsilon of the norm that x goes through before.
    residual [n]: the product is added to it, times tanh(gate) where that is given.
    gated: silu(first product) · second product instead.
    """
    rows = [each.num_rows for each in weights]
    out = x.new_empty(rows[0] if gated else sum(rows))
    first = weights[0]
    rows_each, cols_each = _ROWS_EACH, min(_COLS_EACH, _power_of_two(x.shape[0]))
    places = [part for each in (*weights, *[None] * (3 - len(weights))) for part in _places(each)]
    blocks = -(-rows[0] // rows_each) if gated else sum(-(-count // rows_each) for count in rows)
    norm_weight, eps = norm or (None, 0.0)
    _kernels().product_of_one_row[(blocks,)](
        x, norm_weight, eps, *places, *rows, *[0] * (3 - len(rows)), residual, gate, out,
        BITS=first.bits, GROUP=first.group_size, COLS=x.shape[0], GATED=gated, ROWS_EACH=rows_each,
        COLS_EACH=cols_each, num_warps=4,
    )  # fmt: skip
    return out


@on_its_gpu
def product_of_rows(x: Tensor, weights: Weights) -> Tensor:
    """Return x [rows, cols] times quantised weights, [rows, n]."""
    out = x.new_empty(len(x), weights.num_rows)
    cols, group = x.shape[1], weights.group_size or x.shape[1]
    x_each, rows_each, cols_each = 16 if len(x) <= 16 else 32, 32, 128
    grid = (-(-weights.num_rows // rows_each), -(-len(x) // x_each))
    _kernels().product_of_rows[grid](
        x, weights.codes, weights.scales, weights.zeros, out, len(x), weights.num_rows,
        BITS=weights.bits, GROUP=group, COLS=cols, X_EACH=x_each, ROWS_EACH=rows_each, COLS_EACH=cols_each, num_warps=4,
    )  # fmt: skip
    return out


@on_its_gpu
def rotate_and_keep(
    heads: Tensor,
    angles: tuple[Tensor, Tensor],
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    scales: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return the rotated queries [1, h, 1, e] of heads [h + 2g, e]; their keys and values are written to `position`.

    angles: cosines and sines [e] in float32. keys, values [1, g, l, e] and scales [1, g, l]: of one layer's cache.
    """
    groups, width = keys.shape[1], keys.shape[3]
    num_queries = heads.shape[0] - 2 * groups
    queries = heads.new_empty(1, num_queries, 1, width)
    key_scales, value_scales = scales or (None, None)
    _kernels().rotate_and_keep[(len(heads),)](
        heads, *angles, position, queries, keys, values, key_scales, value_scales,
        keys.stride(1), keys.stride(2), 0 if scales is None else key_scales.stride(1),
        NUM_QUERIES=num_queries, NUM_KEYS=groups, WIDTH=width, num_warps=1,
    )  # fmt: skip
    return queries


@on_its_gpu
def attend_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
    *,
    mask: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
) -> Tensor:
    """Return [b, h, 1, e] for queries [b, h, 1, e] of one position over keys and values [b, g, l, e].

    scales [b, g, l]: of keys and of values in int8. mask [b or 1, 1, 1, l] bool: which keys may be seen.
    norm: weight [e] and epsilon of the norm that queries go through before.
    """
    (num_rows, num_heads, _, width), (groups, length) = q.shape, k.shape[1:3]
    part = max(_PART, -(-length // (_MOST_PARTS * _KEYS_EACH)) * _KEYS_EACH)
    parts = -(-length // part)
    sums = q.new_empty(num_rows, num_heads, parts, width, dtype=torch.float32)
    tops, totals = sums.new_empty(num_rows, num_heads, parts), sums.new_empty(num_rows, num_heads, parts)
    key_scales, value_scales = scales or (None, None)
    by_scales = (0, 0) if scales is None else key_scales.stride()[:2]
    norm_weight, eps = norm or (None, 0.0)
    _kernels().attend_in_parts[(num_rows, groups, parts)](
        q, norm_weight, eps, k, v, key_scales, value_scales, mask, sums, tops, totals, length, width**-0.5,
        *q.stride()[:2], *k.stride()[:3], *by_scales, 0 if mask is None or len(mask) == 1 else mask.stride(0),
        REPEATS=num_heads // groups, QUERIES_EACH=max(_LEAST_QUERIES, _power_of_two(num_heads // groups)),
        WIDTH=width, PART=part, KEYS_EACH=_KEYS_EACH, num_warps=4,
    )  # fmt: skip
    out = q.new_empty(num_rows, num_heads, 1, width)
    _kernels().join_parts[(num_rows * num_heads,)](
        sums, tops, totals, out, parts, PARTS=_power_of_two(parts), WIDTH=width, num_warps=4
    )
    return out


def _kernels() -> ModuleType:
    """Return the module of the kernels: Triton is imported when they are wanted."""
    from vlm.gpu import kernels

    return kernels


def _places(weights: Weights | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return where the numbers of weights are; those of 4 bits by words of eight."""
    if weights is None:
        return None, None, None
    codes = weights.codes.view(torch.int32) if weights.bits == 4 else weights.codes
    return codes, weights.scales, weights.zeros


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()
