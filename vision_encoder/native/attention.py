"""Attention of many positions in C."""

import ctypes
import functools
from array import array
from pathlib import Path

import torch
from torch import Tensor

from vision_encoder.native.build import is_plain, load

_MIN_QUERIES, _MIN_KEYS = 4, 64
"""From which packing keys and values is sooner won back than it takes."""
_MAX_WIDTH = 256  # MAX_WIDTH of attention.c


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load(
        Path(__file__).parent, ("-mavx512dq", "-mavx512bf16"), {"attend_many": "pppnnnnnnnn"}, needs="avx512_bf16"
    )


def attend_many(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool = False) -> Tensor | None:
    """Return [b, h, s, e] for queries [b, h, s, e] over all keys and values [b, g, l, e]; None where torch has to.

    `bias` [l] float32 is added to the logits of each key. `causal`: the queries are the last of the positions, and each
    sees the keys up to its own. Products are exact, but of numbers below 1e-38, and sums in float32; the weights of the
    values are rounded to bfloat16, and add up to one then.
    """
    batch, heads, positions, width = q.shape
    groups, length = k.shape[1:3]
    fits = (
        positions >= _MIN_QUERIES
        and width % 16 == 0
        and width <= _MAX_WIDTH
        and length >= _MIN_KEYS
        and k.shape == v.shape == (batch, groups, length, width)
        and groups > 0
        and heads % groups == 0
        and (positions <= length or not causal)
        and (bias is None or (bias.shape == (length,) and bias.device.type == "cpu"))
        and all(is_plain(x) and x.stride(3) == 1 for x in (q, k, v))
    )
    if not fits or not _serves() or (functions := _library()) is None:
        return None
    out = q.new_empty(batch, positions, heads, width)
    visible = length - positions + 1 if causal else length
    bias = None if bias is None else bias.float().contiguous()
    table = array("q")
    for x in (q, k, v):
        table.extend((x.data_ptr(), *x.stride()[:3]))
    if functions.attend_many(
        table.buffer_info()[0], None if bias is None else bias.data_ptr(), out.data_ptr(), batch, groups,
        heads // groups, positions, length, visible, width, torch.get_num_threads(),
    ):  # fmt: skip
        raise MemoryError(f"no memory for the keys and values of {length} positions")
    return out.transpose(1, 2)


def _serves() -> bool:
    """Return whether C is what does it soonest here: without gradients, and where torch's has no matrix unit to use."""
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and lacks_amx()


def lacks_amx() -> bool:
    """Return whether this is a processor of the x86 kind without AMX."""
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("architecture") == "x86_64" and not capabilities.get("amx_bf16")
