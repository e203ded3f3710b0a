"""From the weights of image keys to maps in a picture's own pixels: back through tiles, padding and resizing."""

from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor

from vision_encoder.config import VisionConfig


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the prompt: how it lies on its canvas, and the size its maps get."""

    vision: VisionConfig
    canvas: tuple[int, int]
    """(rows, cols) in tiles."""
    fitted: tuple[int, int]
    """(height, width) on the canvas, from its upper left corner; the rest is padding."""
    map_size: tuple[int, int]
    """(height, width)"""

    @property
    def num_keys(self) -> int:
        return self.canvas[0] * self.canvas[1] * self.vision.tokens_per_tile

    def patches(self, weights: Tensor) -> Tensor:
        """Return weights [s, l] of its keys as [s, y, x], an entry a patch of the canvas, the class tokens left out."""
        tiles = rearrange(weights, "s (t p) -> s t p", p=self.vision.tokens_per_tile)[:, :, 1:]
        rows, cols = self.canvas
        return rearrange(
            tiles, "s (r c) (y x) -> s (r y) (c x)", r=rows, c=cols, y=self.vision.grid, x=self.vision.grid
        )

    def shares(self) -> tuple[Tensor, Tensor]:
        """Return [height, y] and [width, x]: which share of a row or column of patches lies in each one of pixels."""
        return tuple(
            _shares(
                self.map_size[axis], self.fitted[axis], self.canvas[axis] * self.vision.grid, self.vision.patch_size
            )
            for axis in (0, 1)
        )


def pixel_maps(weights: Tensor, pictures: list[Picture], visible: tuple[int, int]) -> list[list[Tensor]]:
    """Return for each row of attention `weights` [s, l] a map [height, width] of each picture; together they sum to 1.

    A patch's weight is spread evenly over its pixels. `visible` are the keys (first, end) that the rows may see.
    """
    stops = torch.tensor([0] + [picture.num_keys for picture in pictures]).cumsum(0).tolist()
    shares = [picture.shares() for picture in pictures]
    patches, even = [], []
    for picture, first, end in zip(pictures, stops, stops[1:], strict=False):
        patches.append(picture.patches(weights[:, first:end]))
        even.append(torch.full_like(patches[-1][:1], float(visible[0] <= first and end <= visible[1])))
    total, area = (_inside(some, shares) for some in (patches, even))
    # Attention that lies on class tokens and padding alone says nothing of a place.
    patches = [
        torch.where(total > 0, own / total.clamp(min=torch.finfo(total.dtype).tiny), flat / area)
        for own, flat in zip(patches, even, strict=True)
    ]
    return [
        [rows.float() @ own[index].float() @ cols.float().T for own, (rows, cols) in zip(patches, shares, strict=True)]
        for index in range(len(weights))
    ]


def _inside(patches: list[Tensor], shares: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return [s, 1, 1]: the sum of `patches` [s, y, x] of every picture, as far as they lie in it."""
    return sum(
        reduce(rows.sum(0)[:, None] * own * cols.sum(0), "s y x -> s 1 1", "sum")
        for own, (rows, cols) in zip(patches, shares, strict=True)
    )


def _shares(num_pixels: int, fitted: int, num_patches: int, patch_size: int) -> Tensor:
    """Return [num_pixels, num_patches] float64 along one axis: the share of each patch that lies in each pixel."""
    edges = torch.arange(num_pixels + 1, dtype=torch.float64) * fitted / num_pixels
    starts = torch.arange(num_patches, dtype=torch.float64) * patch_size
    overlap = torch.minimum(edges[1:, None], starts + patch_size) - torch.maximum(edges[:-1, None], starts)
    return overlap.clamp(min=0) / patch_size
