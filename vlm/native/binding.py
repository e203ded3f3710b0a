"""The C functions, built once and called through ctypes."""

import ctypes
import functools
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vision_encoder.native import load

TILE = 16
# Bytes from which large pages are asked for: two of them.
_LARGE = 1 << 22
_ARGUMENTS = {
    "meet_processor": "n",
    "large_pages": "pn",
    "product": "ppnpn",
    "rms_norm": "pppnnd",
    "gated": "ppnnn",
    "rotate": "pppnnnnnn",
    "attend_one": "pppnnnnn",
    "decode_step": "ppnppnnnppdn",
    "read_all": "pnn",
}


class NativeWeights(NamedTuple):
    """How the weights of one linear layer lie in memory, as `products.c` reads them."""

    kind: tuple[int, int, int]
    """(bits, columns of x that share a scale, whether each such group of weights has one): equal where weights can be
    multiplied side by side. (16, 0, 0) is bfloat16."""
    places: tuple[int, int, int, int]
    """Where codes, scales and zero points are, and how many rows there are."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the built functions; None, and say why once, where they cannot be had."""
    found = load(Path(__file__).parent, ("-mavx512vnni",), _ARGUMENTS, needs="avx512_vnni")
    if found is not None:
        found.meet_processor(bool(torch.cpu.get_capabilities().get("avx512_bf16")))
    return found


def in_large_pages(x: Tensor) -> Tensor:
    """Return x, which was not written yet, with large pages asked for where it is large and not float32."""
    # Float32 is torch's alone: nothing is built for it.
    fits = type(x) is Tensor and x.device.type == "cpu" and x.dtype != torch.float32 and x.nbytes >= _LARGE
    if fits and (functions := library()) is not None:
        functions.large_pages(x.data_ptr(), x.nbytes)
    return x


def product_table(cols: int, weights: Sequence[NativeWeights]) -> array | None:
    """Return what `products.c` calls a Product, of weights with `cols` columns; None where they are of several kinds.

    It holds places of memory: it is good as long as the weights stay where they are.
    """
    kind = weights[0].kind
    if any(each.kind != kind for each in weights):
        return None
    table = array("q", (cols, sum(each.places[3] for each in weights), *kind))
    for each in weights:
        table.extend(each.places)
    return table


def product(x: Tensor, weights: Sequence[NativeWeights]) -> Tensor | None:
    """Return x [..., in] in bfloat16 times weights, one beside the other; None where they are of several kinds.

    In bfloat16 x has at most MAX_ROWS rows.
    """
    x, cols = x.contiguous(), x.shape[-1]
    if (table := product_table(cols, weights)) is None:
        return None
    rows, out = x.numel() // cols, x.new_empty(*x.shape[:-1], table[1])
    place = table.buffer_info()[0]
    if library().product(x.data_ptr(), out.data_ptr(), rows, place, torch.get_num_threads()):
        raise MemoryError(f"no memory for {rows} rows")
    return out
