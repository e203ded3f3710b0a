"""Weights as whole numbers and scales: weight = (number - zero) · scale."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlm.quantization.scheme import Scheme

# Weights handled at a time, so that what is computed in float32 on the way never adds up to a layer.
CHUNK = 1 << 23


class QuantizedWeight(NamedTuple):
    """The weights [out, in] of one layer."""

    codes: Tensor
    """At 8 bits the numbers themselves, int8 [out, in]. At 4 bits two a byte, uint8 [out, in / 2]: each number plus 8,
    the one of the even column in the lower half."""
    scales: Tensor
    """[out, groups], a float."""
    zeros: Tensor | None = None
    """[out, groups], int8; None where all are 0."""


def quantize(weight: Tensor, scheme: Scheme, dtype: torch.dtype | None = None) -> QuantizedWeight:
    """Return the weights [out, in] in a symmetric scheme, each at most half a step from what it was.

    The largest weight of a group lies half a step beyond the last number, as compressed-tensors' own rule has it, so
    that both ends of the range are used.

    dtype: of the scales, by default the weights'. The numbers are chosen for the scale as it is after rounding.
    """
    dtype = dtype or weight.dtype
    (rows, cols), limit = weight.shape, 2 ** (scheme.bits - 1)
    codes = torch.empty(rows, cols * scheme.bits // 8, dtype=_code_dtype(scheme), device=weight.device)
    scales = torch.empty(rows, scheme.num_groups(cols), dtype=dtype, device=weight.device)
    num_rows = max(1, CHUNK // cols)
    for start in range(0, rows, num_rows):
        here = slice(start, start + num_rows)
        grouped = weight[here].float().unflatten(1, (scales.shape[1], -1))
        # Rounded up, so that no number is clamped. Never 0, not even for a group of zeros: it divides.
        scale = grouped.abs().amax(-1) * ((1 + torch.finfo(dtype).eps / 2) / (limit - 0.5))
        scale = scale.clamp_min(torch.finfo(dtype).tiny).to(dtype)
        numbers = (grouped / scale.float()[..., None]).round_().clamp_(-limit, limit - 1).flatten(1).to(torch.int8)
        scales[here] = scale
        codes[here] = numbers if scheme.bits == 8 else pack_halves(numbers)
    return QuantizedWeight(codes, scales)


def dequantize(weight: QuantizedWeight, scheme: Scheme, dtype: torch.dtype | None = None) -> Tensor:
    """Return the weights [out, in] as floats: the numbers are exact in every dtype, their product is rounded once."""
    codes, scales, zeros = weight
    numbers = codes if scheme.bits == 8 else unpack_halves(codes)
    numbers = numbers.unflatten(1, (scales.shape[1], -1))
    if zeros is not None:
        numbers = numbers.to(torch.int16) - zeros[..., None]
    dtype = dtype or scales.dtype
    return numbers.to(dtype).mul_(scales.to(dtype)[..., None]).flatten(1)


def pack_halves(numbers: Tensor) -> Tensor:
    """Return numbers from -8 to 7, int8 [out, in], two a byte."""
    halves = (numbers + 8).view(torch.uint8)
    return halves[:, 0::2] | (halves[:, 1::2] << 4)


def unpack_halves(codes: Tensor) -> Tensor:
    """Return the numbers of bytes that hold two each, int8 [out, in]."""
    return torch.stack((codes & 15, codes >> 4), -1).flatten(1).view(torch.int8) - 8


def _code_dtype(scheme: Scheme) -> torch.dtype:
    return torch.int8 if scheme.bits == 8 else torch.uint8
