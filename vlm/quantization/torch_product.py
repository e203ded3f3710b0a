"""torch's own products with quantised weights on the CPU, and how they want the weights arranged.

Source: pytorch aten/src/ATen/native/cpu/int8mm_kernel.cpp and int4mm_kernel.cpp.
"""

import functools

import torch
from torch import Tensor

from vlm.quantization.kernel import Kernel
from vlm.quantization.scheme import Scheme
from vlm.quantization.weight import CHUNK, QuantizedWeight

_OPS = torch.ops.aten
_HALF = (torch.bfloat16, torch.float16)
# Rows packed at a time: each such block of the result depends on its own rows alone.
_BLOCK = 64


def torch_kernel(scheme: Scheme, weight: QuantizedWeight) -> Kernel | None:
    """Return torch's kernel for these weights, of rows of a multiple of 32, on the CPU; None where there is none."""
    rows, groups = weight.scales.shape
    cols, kind = weight.codes.shape[1] * 8 // scheme.bits, _KINDS[scheme.bits]
    if any(not _dispatches(name) for name in kind.NAMES):
        return None
    return kind.of(scheme, rows, cols, groups, weight.scales.dtype)


def _dispatches(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CPU")


class _Int8(Kernel):
    """8 bits and a scale a row."""

    NAMES = ("_weight_int8pack_mm",)

    def __init__(self, max_rows: int):
        self.max_rows = max_rows

    @classmethod
    def of(cls, scheme: Scheme, rows: int, cols: int, groups: int, dtype: torch.dtype) -> "Kernel | None":
        return cls(64 if dtype in _HALF else 4) if groups == 1 and scheme.symmetric else None

    def arrange(self, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
        return weight.codes, weight.scales.flatten()

    def restore(self, codes: Tensor, scales: Tensor, scheme: Scheme, rows: slice) -> QuantizedWeight:
        return QuantizedWeight(codes[rows], scales[rows, None])

    def product(self, x: Tensor, codes: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
        return _OPS._weight_int8pack_mm(x, codes, scales)


class _Int4(Kernel):
    """4 bits in groups; zero points come as what is added after scaling."""

    NAMES = ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu")

    def __init__(self, max_rows: int):
        self.max_rows = max_rows

    @classmethod
    def of(cls, scheme: Scheme, rows: int, cols: int, groups: int, dtype: torch.dtype) -> "Kernel | None":
        fits = scheme.group_size in (32, 64, 128, 256) and rows % 16 == 0
        return cls(128 if dtype in _HALF else 1) if fits else None

    def pack(self, codes: Tensor) -> Tensor:
        """Return 4-bit codes [out, in / 2] in the arrangement of this kernel."""
        # Its second argument means nothing on a CPU.
        return _OPS._convert_weight_to_int4pack_for_cpu(_halves(codes).flatten(1).to(torch.int32), 1)

    def product(self, x: Tensor, codes: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
        return _OPS._weight_int4pack_mm_for_cpu(x, codes, scheme.group_size, scales)

    def arrange(self, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
        codes, scales, zeros = weight
        offsets = torch.zeros_like(scales) if zeros is None else -zeros * scales
        num_rows = _BLOCK * max(1, CHUNK // (2 * codes.shape[1] * _BLOCK))
        packed = torch.cat([self.pack(part) for part in codes.split(num_rows)])
        return packed, torch.stack((scales.t(), offsets.t()), -1).contiguous()

    def restore(self, codes: Tensor, scales: Tensor, scheme: Scheme, rows: slice) -> QuantizedWeight:
        first, last, _ = rows.indices(scales.shape[1])
        cols = scales.shape[0] * scheme.group_size
        halves = _halves(codes.view(torch.uint8).flatten()[first * cols // 2 : last * cols // 2]).flatten()
        whole = (last - first) // _BLOCK * _BLOCK
        parts = [self._unpack(part, cols) for part in (halves[: whole * cols], halves[whole * cols :]) if len(part)]
        scale, offset = scales[:, first:last].unbind(-1)
        zeros = None if scheme.symmetric else (-offset / scale).round().t().to(torch.int8)
        return QuantizedWeight(torch.cat(parts), scale.t(), zeros)

    def _unpack(self, halves: Tensor, cols: int) -> Tensor:
        """Return the codes of packed halves of whole blocks, or of one block that is smaller."""
        rows = min(_BLOCK, len(halves) // cols)
        halves = halves.view(-1, rows * cols).index_select(1, _places(self, rows, cols, halves.device))
        return halves[:, 0::2].bitwise_or_(halves[:, 1::2] << 4).reshape(-1, cols // 2)


_KINDS = {8: _Int8, 4: _Int4}


def _halves(codes: Tensor) -> Tensor:
    """Return the halves of bytes [...], the lower one first, [..., 2]."""
    return torch.stack((codes & 15, codes >> 4), -1)


@functools.lru_cache(maxsize=8)
def _places(kernel: _Int4, rows: int, cols: int, device: torch.device) -> Tensor:
    """Return for each number of a block [rows, cols] at which half it is once packed.

    The arrangement differs with the processor and the version of torch, so it is asked of torch: blocks whose numbers
    are the digits of their own places are packed, and the digits read off the halves.
    """
    number = torch.arange(rows * cols, dtype=torch.int32, device=device).view(rows, cols)
    found = torch.zeros(rows * cols, dtype=torch.int32, device=device)
    for shift in range(0, (rows * cols - 1).bit_length(), 4):
        digits = (number >> shift & 15).to(torch.uint8)
        packed = kernel.pack(digits[:, 0::2] | digits[:, 1::2] << 4).view(torch.uint8)
        found |= _halves(packed).flatten().to(torch.int32) << shift
    places = torch.empty_like(found)
    places[found] = number.flatten()
    return places
