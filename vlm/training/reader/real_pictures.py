"""What real charts with questions and those with known print share: how they are varied, and how files are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vision_encoder.preprocess import ImageProcessor
from vlm.errors import VLMError, shown

CANVAS = (2, 2)
"""Of the charts that are taken: all pictures of a batch have the same, and nearly all real charts have this."""
MAX_STRETCH = 0.12
"""By how much each side of a picture is made longer or shorter."""
MAX_SHIFT = 8
"""How far it is moved to the right and down, in pixels as it is seen."""
MAX_JITTER = 0.15
"""Of brightness and of contrast."""
NUM_TRIES = 8


class Varied(NamedTuple):
    """A picture that was changed at random: what was at (x, y) is at `scale * (x, y) + shift`."""

    image: Image.Image
    scale: tuple[float, float]
    """Along x and y."""
    shift: tuple[int, int]
    """Along x and y, in pixels."""


def varied(image: Image.Image, rng: np.random.Generator, processor: ImageProcessor, enlarge: float = 1.0) -> Varied:
    """Return a picture that fills CANVAS, `enlarge` times as large, then stretched, moved and lit a little otherwise.

    It is no larger than the canvas, so that it is resized once, here, and not again by `processor`.
    """
    limit = CANVAS[0] * processor.config.tile_size
    for _ in range(NUM_TRIES):
        shift = tuple(int(pixels) for pixels in rng.integers(0, MAX_SHIFT + 1, 2))
        size = _stretched(image.size, rng.uniform(1 - MAX_STRETCH, 1 + MAX_STRETCH, 2) * enlarge, shift, limit)
        if processor.placement((size[1] + shift[1], size[0] + shift[0]))[0] == CANVAS:
            break
    else:
        # Nearly twice as wide as it is high, or the other way round: it fills the canvas only as it is.
        shift, size = (0, 0), _stretched(image.size, np.full(2, enlarge), (0, 0), limit)
    smooth = Image.Resampling.BICUBIC if size[0] > image.width else Image.Resampling.BILINEAR
    moved = Image.new("RGB", (size[0] + shift[0], size[1] + shift[1]), image.getpixel((0, 0)))
    moved.paste(image.resize(size, smooth), shift)
    return Varied(_lit(moved, rng), (size[0] / image.width, size[1] / image.height), shift)


def _stretched(size: tuple[int, int], factors: np.ndarray, shift: tuple[int, int], limit: int) -> tuple[int, int]:
    """Return (width, height) times what fits a canvas of side `limit`, at most 1, and times `factors`."""
    wished = np.array(size) * min(1.0, limit / (max(size) * factors.mean())) * factors
    width, height = wished * min(1.0, *(limit - np.array(shift)) / wished)
    return max(1, round(width)), max(1, round(height))


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a picture with brightness and contrast changed a little, the latter about the middle grey."""
    brightness, contrast = rng.uniform(1 - MAX_JITTER, 1 + MAX_JITTER, 2)
    levels = ((np.arange(256) - 127.5) * contrast + 127.5) * brightness
    return image.point(levels.clip(0, 255).round().astype(int).tolist() * 3)


def read_rows(path: Path, bad: Callable[[str, str], VLMError], advice: str) -> list:
    """Return what a JSON file lists.

    bad: makes an error of what was found and what to do. advice: what to do where the file is no list.
    """
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise bad(f"{path.name!s:.60} cannot be read: {error.strerror}", "check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise bad(f"{path.name!s:.60} is no JSON ({error!s:.80})", "download it again, or take it out") from None
    if not isinstance(rows, list):
        raise bad(f"{path.name!s:.60} is {shown(rows)}", advice)
    return rows
