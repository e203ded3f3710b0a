"""Quantised weights as compressed-tensors stores them: a few tensors of a file that stand for one weight, and back.

Source: compressed-tensors compressors/pack_quantized and compressors/naive_quantized.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vlm.checkpoint.files import invalid
from vlm.checkpoint.stored import ComputedTensor, Parts, QuantizedTensor, StoredTensor, join_parts
from vlm.quantization import GROUP_SIZES, QuantizedWeight, Scheme, dequantize
from vlm.quantization.weight import pack_halves, unpack_halves

PACKED, SCALE, SHAPE, ZEROS = "weight_packed", "weight_scale", "weight_shape", "weight_zero_point"
# Of activations and caches, which are never quantised here.
_PASSED_OVER = ("input_scale", "output_scale", "input_zero_point", "output_zero_point", "k_scale", "v_scale", "q_scale")
# Rows and columns that share a scale where 8-bit floats have scales by block.
_BLOCK = 128


class PackedTensor(QuantizedTensor):
    """A weight stored as whole numbers with scales."""

    def __init__(self, shape, codes: StoredTensor, scales: StoredTensor, zeros: StoredTensor | None, scheme: Scheme):
        super().__init__(tuple(shape), scales.dtype, codes.place)
        self.parts = (codes, scales, zeros)
        self.scheme = scheme

    def copy_to(self, out: Tensor) -> None:
        out.copy_(dequantize(self.load_quantized(), self.scheme))

    def load_quantized(self) -> QuantizedWeight:
        """Return the weight as it is stored, on the CPU."""
        codes, scales, zeros = (None if part is None else part.load() for part in self.parts)
        rows, cols = self.shape
        if scales.numel() == 1:
            scales = scales.flatten().expand(rows)
        scales = scales.reshape(rows, -1).contiguous()
        if codes.dtype == torch.int32:
            codes = _bytes(codes)[:, : cols * self.scheme.bits // 8].contiguous()
            codes = codes if self.scheme.bits == 4 else _signed(codes)
        elif self.scheme.bits == 4:
            codes = pack_halves(codes)
        if zeros is not None and zeros.dtype == torch.int32:
            zeros = _bytes(zeros.t().contiguous())
            zeros = (unpack_halves(zeros) if self.scheme.bits == 4 else _signed(zeros))[:, :rows].t().contiguous()
        return QuantizedWeight(codes, scales, zeros)


class Float8Tensor(QuantizedTensor):
    """A weight of 8-bit floats and their scales: one, one a row, or one a block."""

    def __init__(self, values: StoredTensor, scales: StoredTensor):
        super().__init__(values.shape, scales.dtype, values.place)
        self.parts = (values, scales)

    def copy_to(self, out: Tensor) -> None:
        values, scales = (part.load() for part in self.parts)
        rows, cols = values.shape
        if tuple(scales.shape) == _blocks(rows, cols):
            scales = scales.repeat_interleave(_BLOCK, 0)[:rows].repeat_interleave(_BLOCK, 1)[:, :cols]
        elif scales.numel() > 1:
            scales = scales.reshape(rows, 1)
        # As the library does: in the scales' own dtype.
        out.copy_(values.to(scales.dtype).mul_(scales))


def fold(
    stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], name: str
) -> dict[str, StoredTensor]:
    """Return the tensors of a folder with one in the place of those that stand for one quantised weight.

    How each is quantised follows from the shapes of what is stored, so no pattern of the settings is matched.

    shapes: those of the weights, by name; others are left as they are.

    Raises VLMError that lists every weight of which a part is missing or misshapen.
    """
    weights: dict[str, Parts] = {}
    for tensor in stored:
        module, _, part = tensor.rpartition(".")
        if part in (PACKED, SCALE) and f"{module}.weight" in shapes:
            weights[f"{module}.weight"] = {}
    folded = {}
    for tensor, found in stored.items():
        module, _, part = tensor.rpartition(".")
        if f"{module}.weight" in weights and part in (PACKED, SCALE, SHAPE, ZEROS, "weight"):
            weights[f"{module}.weight"][part] = found
        elif part == "weight_g_idx":
            raise invalid(
                f"{name} was quantised in the order of activations (weight_g_idx), which cannot be read; give one "
                'quantised without actorder "group", or the original weights'
            )
        elif part not in _PASSED_OVER:
            folded[tensor] = found
    return folded | join_parts(weights, _weight, shapes, name)


def unfold(
    module: str, shape: tuple[int, int], scheme: Scheme, dtype: torch.dtype, compute: Callable[[], QuantizedWeight]
) -> dict[str, StoredTensor]:
    """Return the tensors that stand for one weight in a file, by name. `compute` is called once, when one is read.

    dtype: of the scales that `compute` returns.
    """
    rows, cols = shape
    groups, bits = scheme.num_groups(cols), scheme.bits
    shapes = {PACKED: ((rows, -(-cols * bits // 32)), torch.int32), SCALE: ((rows, groups), dtype)}
    if not scheme.symmetric:
        shapes[ZEROS] = ((-(-rows * bits // 32), groups), torch.int32)
    computed: dict[str, Tensor] = {}

    def take(part: str) -> Tensor:
        if not computed:
            computed.update(_parts(compute(), bits))
        return computed.pop(part)

    parts = {part: ComputedTensor(shape, dtype, partial(take, part)) for part, (shape, dtype) in shapes.items()}
    parts[SHAPE] = ComputedTensor((2,), torch.int64, lambda: torch.tensor(shape))
    return {f"{module}.{part}": tensor for part, tensor in parts.items()}


def _weight(parts: Parts, shape: tuple[int, ...]) -> StoredTensor:
    """Return the one tensor that `parts` stand for. Raises ValueError where they are not those of such a weight."""
    codes, scales, zeros = parts.get(PACKED, parts.get("weight")), parts.get(SCALE), parts.get(ZEROS)
    missing = [part for part, found in ((PACKED, codes), (SCALE, scales)) if found is None]
    if missing or len(shape) != 2:
        raise ValueError(f"{', '.join(missing) or 'a plain weight'} is missing")
    if not scales.dtype.is_floating_point or scales.dtype.itemsize < 2:
        raise ValueError(f"{SCALE} is {scales.dtype}, expected a float of 16 bits or more")
    rows, cols = shape
    if SHAPE in parts and parts[SHAPE].load().tolist() != [rows, cols]:
        raise ValueError(f"{SHAPE} is {parts[SHAPE].load().tolist()}, expected {[rows, cols]}")
    if PACKED not in parts and codes.shape != shape:
        raise ValueError(f"weight {list(codes.shape)}, expected {[rows, cols]}")
    by_row = scales.shape in ((), (1,), (1, 1), (rows,), (rows, 1))
    if codes.dtype == torch.float8_e4m3fn and (by_row or scales.shape == _blocks(rows, cols)) and zeros is None:
        return Float8Tensor(codes, scales)
    bits = next((bits for bits in (4, 8) if codes.shape == (rows, -(-cols * bits // 32))), None)
    if codes.dtype == torch.int8:
        bits = 8
    if bits is None or codes.dtype not in (torch.int32, torch.int8):
        raise ValueError(f"{codes.dtype} {list(codes.shape)}, expected 4 or 8 bits for {[rows, cols]}")
    groups = 1 if by_row else scales.shape[-1]
    if scales.shape not in ((), (1,), (1, 1), (rows,), (rows, groups)) or cols % groups or (bits == 4 and cols % 2):
        raise ValueError(f"{SCALE} {list(scales.shape)} does not divide {[rows, cols]}")
    if zeros is not None and zeros.shape not in ((rows, groups), (-(-rows * bits // 32), groups)):
        raise ValueError(f"{ZEROS} {list(zeros.shape)}, expected {[-(-rows * bits // 32), groups]}")
    # A row of one group is the same either way; named by its size it is one that kernels know.
    size = cols // groups if groups > 1 or (bits == 4 and cols in GROUP_SIZES) else None
    scheme = Scheme(bits=bits, group_size=size, symmetric=zeros is None)
    return PackedTensor(shape, codes, scales, zeros, scheme)


def _parts(weight: QuantizedWeight, bits: int) -> dict[str, Tensor]:
    codes, scales, zeros = weight
    parts = {PACKED: _words(codes if bits == 4 else _unsigned(codes)), SCALE: scales.contiguous()}
    if zeros is not None:
        numbers = zeros.t().contiguous()
        packed = _unsigned(numbers) if bits == 8 else pack_halves(functional.pad(numbers, (0, numbers.shape[1] % 2)))
        parts[ZEROS] = _words(packed).t().contiguous()
    return parts


def _words(rows: Tensor) -> Tensor:
    """Return bytes [rows, n] as 32-bit words, each row filled up with zeros."""
    return functional.pad(rows, (0, -rows.shape[1] % 4)).contiguous().view(torch.int32)


def _bytes(words: Tensor) -> Tensor:
    return words.view(torch.uint8)


def _signed(codes: Tensor) -> Tensor:
    """Return numbers stored with 128 added as what they are."""
    return codes.bitwise_xor(128).view(torch.int8)


def _unsigned(numbers: Tensor) -> Tensor:
    return numbers.view(torch.uint8).bitwise_xor(128)


def _blocks(rows: int, cols: int) -> tuple[int, int]:
    return -(-rows // _BLOCK), -(-cols // _BLOCK)
