"""Our own product with quantised weights on the CPU; see `vlm/native/products.c`.

torch's kernels turn every weight into a float, which takes longer than reading it; this one multiplies bytes, and
multiplies whole prompts faster than expanded weights are.
"""

import sys

import torch
from einops import rearrange
from torch import Tensor

from vlm.native import TILE, NativeWeights, in_large_pages, library, product
from vlm.quantization.kernel import Kernel
from vlm.quantization.scheme import Scheme
from vlm.quantization.weight import CHUNK, QuantizedWeight

# Columns of x that share a scale where a whole row of weights has one.
_GROUP_SIZES = (128, 64, 32)


class NativeKernel(Kernel):
    """Weights in bfloat16 models, in tiles of 16 rows; see `products.c`."""

    max_rows = sys.maxsize

    def __init__(self, group_size: int):
        self.group_size = group_size

    @classmethod
    def of(cls, scheme: Scheme, weight: QuantizedWeight) -> "NativeKernel | None":
        rows, cols = weight.scales.shape[0], weight.codes.shape[1] * 8 // scheme.bits
        sizes = _GROUP_SIZES if scheme.group_size is None else (scheme.group_size,)
        size = next((size for size in sizes if size in _GROUP_SIZES and cols % size == 0), None)
        fits = weight.scales.dtype == torch.bfloat16 and rows % TILE == 0 and size is not None
        # Zero points have a place for each group only.
        fits = fits and (scheme.symmetric or scheme.group_size is not None)
        return cls(size) if fits and library() is not None else None

    def arrange(self, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
        bits = 8 if weight.codes.dtype == torch.int8 else 4
        num_rows, width = weight.codes.shape
        tiles = in_large_pages(torch.empty(num_rows // TILE, TILE * width, dtype=torch.uint8))
        count = max(1, CHUNK // (TILE * width))
        for to, codes in zip(tiles.split(count), weight.codes.split(count * TILE), strict=True):
            to.copy_(_to_tiles(codes, bits))
        parts = [weight.scales] if weight.zeros is None else [weight.scales, weight.zeros + 2 ** (bits - 1.0)]
        scales = torch.stack([part.to(torch.bfloat16) for part in parts])
        return tiles, rearrange(scales, "kind (tiles row) groups -> kind tiles groups row", row=TILE).contiguous()

    def restore(self, codes: Tensor, scales: Tensor, scheme: Scheme, rows: slice) -> QuantizedWeight:
        first, last, _ = rows.indices(len(codes) * TILE)
        tiles = slice(first // TILE, last // TILE)
        parts = rearrange(scales[:, tiles], "kind tiles groups row -> kind (tiles row) groups")
        zeros = None if scheme.symmetric else (parts[1].float() - 2 ** (scheme.bits - 1)).to(torch.int8)
        return QuantizedWeight(_from_tiles(codes[tiles], scheme.bits), parts[0].contiguous(), zeros)

    def product(self, x: Tensor, codes: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
        return product(x, [self.native_weights(codes, scales, scheme)])

    def native_weights(self, codes: Tensor, scales: Tensor, scheme: Scheme) -> NativeWeights:
        """Return where the weights are that `arrange` made."""
        zeros = scales[1].data_ptr() if len(scales) == 2 else 0
        kind = (scheme.bits, self.group_size, int(scheme.group_size is not None))
        return NativeWeights(kind, (codes.data_ptr(), scales.data_ptr(), zeros, TILE * len(codes)))


def _to_tiles(codes: Tensor, bits: int) -> Tensor:
    """Return the bytes of codes as `products.c` reads them: of 16 rows in turn 4 columns each (8 bits), or 8."""
    words = codes.contiguous().view(torch.int32)
    if bits == 4:
        words = _exchanged(_exchanged(words, 8, 0x0000FF00), 4, 0x00F000F0)
    return rearrange(words, "(tile row) line -> tile (line row)", row=TILE).view(torch.uint8)


def _from_tiles(tiles: Tensor, bits: int) -> Tensor:
    """Return the codes [out, ...] of tiles: `_to_tiles` undone."""
    words = rearrange(tiles.view(torch.int32), "tile (line row) -> (tile row) line", row=TILE).contiguous()
    if bits == 4:
        words = _exchanged(_exchanged(words, 4, 0x00F000F0), 8, 0x0000FF00)
    return words.view(torch.uint8 if bits == 4 else torch.int8)


def _exchanged(words: Tensor, shift: int, mask: int) -> Tensor:
    """Return words whose bits under `mask` and those `shift` higher have changed places.

    Twice so, and what lay in 8 halves of a byte in order lies in the order 0 4 1 5 2 6 3 7.
    Source: Warren, Hacker's Delight, section 7-2 (shuffling bits).
    """
    differing = (words ^ (words >> shift)) & mask
    return words ^ differing ^ (differing << shift)
