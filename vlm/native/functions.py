"""Layers and functions that are done in C where that is possible, each with what torch does otherwise."""

import ctypes
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vision_encoder.native import is_plain
from vlm.native.binding import TILE, NativeWeights, library, product

# Rows of x up to which ours are sooner done than torch's, in bfloat16.
MAX_ROWS = 4
# Numbers up to which our norm, by one thread, is sooner done than torch's.
_MAX_NORMALISED = 1 << 16
_DENSE = (16, 0, 0)


class Linear(nn.Linear):
    """torch's linear layer without a bias."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return linear(x, self.weight)

    def native_weights(self, x: Tensor) -> NativeWeights | None:
        """Return where the weights are for a product with x in C; None where torch has to."""
        # What is computed anew at each look would be gone before C reads it.
        weight = self._parameters.get("weight")
        return None if weight is None else dense_weights(x, weight)


class RMSNorm(nn.RMSNorm):
    """torch's norm over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to the same shape."""
        (cols,) = self.normalized_shape
        functions = _functions_for(x, self.weight, _MAX_NORMALISED // cols) if cols % TILE == 0 else None
        if functions is None:
            return super().forward(x)
        x = x.contiguous()
        out = torch.empty_like(x)
        functions.rms_norm(x.data_ptr(), self.weight.data_ptr(), out.data_ptr(), x.numel() // cols, cols, self.eps)
        return out


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [..., in] times weight [out, in]."""
    weights = dense_weights(x, weight)
    return functional.linear(x, weight) if weights is None else product(x, [weights])


def dense_weights(x: Tensor, weight: Tensor) -> NativeWeights | None:
    """Return where a weight [out, in] in bfloat16 is for a product with few rows of x in C; None where torch has to."""
    rows, cols = weight.shape
    fits = cols == x.shape[-1] and rows % TILE == 0 and cols % 32 == 0 and weight.is_contiguous()
    if not fits or _functions_for(x, weight) is None:
        return None
    return NativeWeights(_DENSE, (weight.data_ptr(), 0, 0, rows))


def side_by_side(x: Tensor, *layers: nn.Module) -> Tensor | None:
    """Return what `layers` make of x [..., in], one beside the other, by one product; None where that is not had."""
    weights = weights_of(x, layers)
    return None if weights is None else product(x, weights)


def weights_of(x: Tensor, layers: Sequence[nn.Module]) -> list[NativeWeights] | None:
    """Return where the weights of `layers` are for products with x in C; None where one of them needs torch."""
    found = []
    for layer in layers:
        # What hooks add (adapters, for one) or another `forward` does would be left out.
        plain = hasattr(layer, "native_weights") and is_untouched(layer)
        if not plain or (weights := layer.native_weights(x)) is None:
            return None
        found.append(weights)
    return found


def is_untouched(part: nn.Module) -> bool:
    """Return whether nothing looks on at what a module does, and it does what its class does."""
    return not part._forward_hooks and not part._forward_pre_hooks and "forward" not in vars(part)


def gated(x: Tensor, gate: nn.Module, up: nn.Module) -> Tensor | None:
    """Return silu(gate(x)) · up(x), rounded once; None where torch has to."""
    both = side_by_side(x, gate, up)
    if both is None:
        return None
    cols = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], cols)
    library().gated(both.data_ptr(), out.data_ptr(), out.numel() // cols, cols, torch.get_num_threads())
    return out


def rotate_in_place(x: Tensor, turned: int, cos: Tensor, sin: Tensor) -> bool:
    """Turn the first `turned` heads of x [b, s, heads, e] by angles [b or 1, 1, s, e]; False where torch has to."""
    heads, width = x.shape[2:]
    fits = width % 16 == 0 and x.is_contiguous() and is_plain(x) and not torch.is_grad_enabled()
    if not fits or (functions := library()) is None:
        return False
    positions = cos.numel() // width
    functions.rotate(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), x.numel() // (heads * width), positions, heads, turned, width,
        torch.get_num_threads(),
    )  # fmt: skip
    return True


def attend_one(q: Tensor, k: Tensor, v: Tensor, scales: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
    """Return [1, h, 1, e] for one position's queries over all keys and values [1, g, l, e]; None where torch has to.

    `scales` [1, g, l] are those of keys and of values in int8.
    """
    _, groups, length, width = k.shape
    fits = len(q) == 1 and q.shape[2] == 1 and q.shape[3] == width and q.shape[1] % max(1, groups) == 0
    table = vectors(q[0, 0], k, v, scales) if fits else None
    if table is None:
        return None
    q = q.contiguous()
    out = torch.empty_like(q)
    if library().attend_one(
        q.data_ptr(), table.buffer_info()[0], out.data_ptr(), groups, q.shape[1] // groups, length, width,
        torch.get_num_threads(),
    ):  # fmt: skip
        raise MemoryError(f"no memory for the scores of {length} keys")
    return out


def vectors(x: Tensor, k: Tensor, v: Tensor, scales: tuple[Tensor, Tensor] | None) -> array | None:
    """Return what `common.h` calls Vectors, of keys and of values [1, g, l, e], for a query x; None where torch has to.

    `scales` [1, g, l] are those of keys and of values in int8.
    """
    width = k.shape[3]
    dense = all(x.stride()[2:] == (width, 1) for x in (k, v)) and all(scale.stride(2) == 1 for scale in scales or ())
    wide = width % 16 == 0 if scales is None else width % 64 == 0 and width <= 256
    if not dense or not wide or k.shape[2] == 0 or _functions_for(x, k if scales is None else scales[0]) is None:
        return None
    table = array("q")
    for part, scale in zip((k, v), scales or (None, None), strict=True):
        table.extend((part.data_ptr(), part.stride(1) * part.itemsize))
        table.extend((0, 0) if scale is None else (scale.data_ptr(), scale.stride(1)))
    return table


def _functions_for(x: Tensor, weight: Tensor, max_rows: int = MAX_ROWS) -> ctypes.CDLL | None:
    """Return the functions where they serve for a product or norm of x: few rows in bfloat16, without gradients."""
    serves = 0 < x.numel() <= max_rows * x.shape[-1] and is_plain(weight) and is_plain(x)
    return library() if serves and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") else None
