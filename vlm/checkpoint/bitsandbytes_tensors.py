"""Weights as bitsandbytes stores them in 4 bits: entries of a table of 16 floats, and a largest value a block.

Source: bitsandbytes functional.py, QuantState, quantize_4bit and quantize_blockwise.
"""

import re
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from vlm.checkpoint.files import parse_json
from vlm.checkpoint.stored import Parts, QuantizedTensor, StoredTensor, join_parts
from vlm.quantization.weight import CHUNK

# What is stored for one weight beside its codes. The last holds, as JSON, what is no tensor.
_PART = re.compile(r"(.+\.weight)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__.+)")
_STATE = "quant_state.bitsandbytes__"
_DTYPES = ("float32", "float16", "bfloat16")


class FourBitTensor(QuantizedTensor):
    """A weight [rows, cols] whose codes lie two a byte, the first in the upper half, in blocks of the flat weight."""

    def __init__(self, shape: tuple[int, int], parts: Parts, state: Mapping):
        super().__init__(shape, getattr(torch, state["dtype"]), parts["codes"].place)
        self.parts = parts
        self.state = state

    def copy_to(self, out: Tensor) -> None:
        (rows, cols), size = self.shape, self.state["blocksize"]
        codes = self.parts["codes"].load().view(torch.uint8).flatten()
        table, largest = self.parts["quant_map"].load(), self._largest()
        # Whole blocks, and whole bytes, at a time.
        num_rows = size * max(1, CHUNK // (size * cols))
        for start in range(0, rows, num_rows):
            first, last = start * cols, min(start + num_rows, rows) * cols
            pairs = codes[first // 2 : (last + 1) // 2]
            numbers = torch.stack((pairs >> 4, pairs & 15), -1).flatten()[: last - first]
            scales = largest[first // size : -(-last // size)].repeat_interleave(size)[: last - first]
            out[start : start + num_rows] = (table[numbers.int()] * scales).view(-1, cols)

    def _largest(self) -> Tensor:
        """Return the largest value of each block; with double quantisation it is in 8 bits itself."""
        largest = self.parts["absmax"].load()
        if "nested_absmax" not in self.parts:
            return largest
        table, outer = self.parts["nested_quant_map"].load(), self.parts["nested_absmax"].load()
        outer = outer.repeat_interleave(self.state["nested_blocksize"])[: len(largest)]
        return table[largest.int()] * outer + self.state["nested_offset"]


def fold(
    stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], name: str
) -> dict[str, StoredTensor]:
    """Return the tensors of a folder with one in the place of those that stand for one weight; see `quantized_tensors`.

    Raises VLMError that lists every weight of which a part is missing or misshapen.
    """
    weights: dict[str, Parts] = {}
    for tensor, found in stored.items():
        if match := _PART.fullmatch(tensor):
            weights.setdefault(match[1], {})[match[2]] = found
    folded = {}
    for tensor, found in stored.items():
        if tensor in weights:
            weights[tensor]["codes"] = found
        elif not _PART.fullmatch(tensor):
            folded[tensor] = found
    return folded | join_parts(weights, _weight, shapes, name)


def _weight(parts: Parts, shape: tuple[int, ...]) -> StoredTensor:
    """Return the one tensor that `parts` stand for. Raises ValueError where they are not those of such a weight."""
    packed = next((part for part in parts if part.startswith(_STATE)), _STATE)
    missing = [part for part in ("codes", "absmax", "quant_map", packed) if part not in parts]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    is_nested = "nested_absmax" in parts
    state = _state(parts[packed], is_nested)
    if len(shape) != 2 or state.get("shape") != list(shape):
        raise ValueError(f"its shape is {state.get('shape')!s:.40}, expected {list(shape)}")
    count = shape[0] * shape[1]
    blocks = -(-count // state["blocksize"])
    sizes = {"absmax": blocks, "quant_map": 16}
    if is_nested:
        sizes |= {"nested_absmax": -(-blocks // state["nested_blocksize"]), "nested_quant_map": 256}
    for part, size in sizes.items():
        if part not in parts or parts[part].shape != (size,):
            raise ValueError(f"{part} is {list(parts[part].shape) if part in parts else 'missing'}, expected [{size}]")
    if parts["absmax"].dtype.is_floating_point == is_nested:
        raise ValueError(f"absmax is {parts['absmax'].dtype}")
    if parts["codes"].num_bytes != -(-count // 2):
        raise ValueError(f"{parts['codes'].num_bytes:,} bytes of codes, expected {-(-count // 2):,}")
    return FourBitTensor(shape, parts, state)


def _state(packed: StoredTensor, nested: bool) -> dict:
    if packed.dtype != torch.uint8 or len(packed.shape) != 1:
        raise ValueError("its quant_state is no text")
    state = parse_json(packed.load().numpy().tobytes(), "its quant_state")
    for size in ["blocksize"] + ["nested_blocksize"] * nested:
        # Even: two codes share a byte.
        if type(state.get(size)) is not int or not 0 < state[size] <= 1 << 16 or state[size] % 2:
            raise ValueError(f"its quant_state gives {size} {state.get(size)!r:.40}")
    if state.get("dtype") not in _DTYPES:
        raise ValueError(f"its quant_state gives dtype {state.get('dtype')!r:.40}")
    if nested:
        with suppress(TypeError, ValueError):
            return state | {"nested_offset": float(state["nested_offset"])}
        raise ValueError(f"its quant_state gives nested_offset {state.get('nested_offset')!r:.40}")
    return state
