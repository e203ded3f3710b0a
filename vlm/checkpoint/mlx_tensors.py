"""Weights as MLX stores them: whole numbers in groups, each with a scale and what is added after scaling.

Source: mlx ops.cpp, affine_quantize; mlx-vlm models/mllama/vision.py, `sanitize`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vlm.checkpoint.stored import ComputedTensor, Parts, QuantizedTensor, StoredTensor, join_parts
from vlm.quantization.weight import CHUNK

# Other widths of MLX do not divide a byte.
_BITS = (2, 4, 8)
_PATCHES = "patch_embedding.weight"


class AffineTensor(QuantizedTensor):
    """A weight [rows, cols] of `bits` a number, the first in the lowest."""

    def __init__(self, shape: tuple[int, int], bits: int, *parts: StoredTensor):
        super().__init__(shape, parts[1].dtype, parts[0].place)
        self.bits = bits
        self.parts = parts

    def copy_to(self, out: Tensor) -> None:
        words, scales, biases = (part.load() for part in self.parts)
        shifts = torch.arange(0, 8, self.bits, dtype=torch.uint8)
        (rows, cols), groups = self.shape, scales.shape[1]
        num_rows = max(1, CHUNK // cols)
        for start in range(0, rows, num_rows):
            here = slice(start, start + num_rows)
            numbers = (words[here].view(torch.uint8)[..., None] >> shifts) & (2**self.bits - 1)
            numbers = numbers.view(len(numbers), groups, -1).float()
            out[here] = (numbers * scales[here, :, None].float() + biases[here, :, None].float()).flatten(1)


def fold(
    stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], name: str
) -> dict[str, StoredTensor]:
    """Return the tensors of a folder with one in the place of those that stand for one weight; see `quantized_tensors`.

    How many bits each has follows from the shapes of what is stored.

    Raises VLMError that lists every weight of which a part is missing or misshapen.
    """
    weights: dict[str, Parts] = {
        f"{tensor.removesuffix('.scales')}.weight": {} for tensor in stored if tensor.endswith(".scales")
    }
    folded = {}
    for tensor, found in stored.items():
        module, _, part = tensor.rpartition(".")
        if f"{module}.weight" in weights and part in ("weight", "scales", "biases"):
            weights[f"{module}.weight"][part] = found
        else:
            folded[tensor] = _channels_first(found) if tensor.endswith(_PATCHES) and len(found.shape) == 4 else found
    return folded | join_parts(weights, _weight, shapes, name)


def _weight(parts: Parts, shape: tuple[int, ...]) -> StoredTensor:
    """Return the one tensor that `parts` stand for. Raises ValueError where they are not those of such a weight."""
    missing = [part for part in ("weight", "biases") if part not in parts]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    words, scales, biases = parts["weight"], parts["scales"], parts["biases"]
    if len(shape) != 2 or words.dtype != torch.uint32 or len(words.shape) != 2 or words.shape[0] != shape[0]:
        raise ValueError(f"{words.dtype} {list(words.shape)} for {list(shape)}, expected as many rows of uint32")
    (rows, cols), bits = shape, words.shape[1] * 32 / shape[1]
    if bits not in _BITS:
        raise ValueError(f"{bits:g} bits, expected {', '.join(map(str, _BITS))}")
    if not scales.dtype.is_floating_point or scales.dtype.itemsize < 2:
        raise ValueError(f"scales are {scales.dtype}, expected a float of 16 bits or more")
    groups = scales.shape[-1] if scales.shape else 0
    if groups == 0 or scales.shape != (rows, groups) or cols % groups or biases.shape != scales.shape:
        raise ValueError(f"scales {list(scales.shape)} and biases {list(biases.shape)} do not divide {[rows, cols]}")
    return AffineTensor(shape, int(bits), words, scales, biases)


def _channels_first(patches: StoredTensor) -> StoredTensor:
    """Return the patch embedding [v, y, x, c] as [v, c, y, x]."""
    width, y, x, channels = patches.shape
    # Not einops: this is no layout of ours on either side.
    return ComputedTensor((width, channels, y, x), patches.dtype, lambda: patches.load().permute(0, 3, 1, 2))
