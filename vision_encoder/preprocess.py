"""Picture to tiles: resize, pad, normalise, cut. Equal to Meta's to the grey level.

Source: llama-models models/llama3/multimodal/image_transform.py, VariableSizeImageTransform.
"""

from typing import NamedTuple

import numpy
import torch
from einops import rearrange
from PIL import Image

from vision_encoder.config import VisionConfig
from vision_encoder.image_input import read_image
from vision_encoder.tiling import choose_canvas, fitted_size

# CLIP's, per colour.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ProcessedImage(NamedTuple):
    """A picture as the encoder takes it."""

    pixels: torch.Tensor
    """[t, c, height, width] float32, normalised; the real tiles, row by row."""
    canvas: tuple[int, int]
    """(rows, cols) in tiles."""


class ImageLevels(NamedTuple):
    """A picture on the tiles of its canvas, not yet normalised."""

    levels: torch.Tensor
    """[t, c, height, width] uint8; the real tiles, row by row."""
    canvas: tuple[int, int]
    """(rows, cols) in tiles."""


class ImageProcessor:
    """Cuts pictures into the tiles of one encoder."""

    def __init__(self, config: VisionConfig):
        self.config = config

    def __call__(self, image) -> ProcessedImage:
        """Return the tiles of `image`, which is anything `read_image` takes.

        Raises: ImageError as `read_image` does.
        """
        levels, canvas = self.levels(read_image(image))
        return ProcessedImage(normalise(levels), canvas)

    def levels(self, image: Image.Image) -> ImageLevels:
        """Return the tiles of `image`, which is what `read_image` returned, as `__call__` does before `normalise`."""
        tile_size = self.config.tile_size
        canvas, fitted = self.placement((image.height, image.width))
        if image.size != fitted[::-1]:
            # What torchvision's v2 functions do on PIL images, bit for bit; importing them is two fifths of a cold
            # start.
            image = image.resize(fitted[::-1], Image.Resampling.BILINEAR)
        if fitted != (canvas[0] * tile_size, canvas[1] * tile_size):
            # Black before normalising, so that padding inside a tile is not zero after it; missing tiles are.
            padded = Image.new("RGB", (canvas[1] * tile_size, canvas[0] * tile_size))
            padded.paste(image)
            image = padded
        # Colour by colour: Pillow takes them apart faster than a transposed copy does.
        levels = torch.from_numpy(numpy.stack([numpy.asarray(band) for band in image.split()]))
        tiles = rearrange(levels, "c (rows y) (cols x) -> (rows cols) c y x", rows=canvas[0], cols=canvas[1])
        return ImageLevels(tiles.contiguous(), canvas)

    def placement(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return ((rows, cols), (height, width)): the canvas of a picture of `size` and its size on that canvas."""
        tile_size = self.config.tile_size
        canvas = choose_canvas(size, tile_size=tile_size, max_tiles=self.config.max_tiles)
        return canvas, fitted_size(size, canvas, tile_size=tile_size)


def normalise(levels: torch.Tensor) -> torch.Tensor:
    """Return the levels [..., c, height, width] of colours, uint8, as the encoder takes them, float32."""
    mean, std = (torch.tensor(values, device=levels.device)[:, None, None] for values in (MEAN, STD))
    return (levels.to(torch.float32) * (1 / 255) - mean) / std
