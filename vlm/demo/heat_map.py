"""A map of attention laid over its picture."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MAP_SIDE = 192
"""Pixels along the longer side of the maps that are asked for: finer than the patches of most pictures."""
PREVIEW_SIDE = 1024
"""Pixels along the longer side of what is shown."""

SOFTNESS = 0.02
"""Radius of the blur in parts of the longer side."""
COOL, HOT = np.array([255, 176, 32]), np.array([214, 28, 44])
STRONGEST = 0.78
"""How much of the picture the colour hides where attention is strongest."""
CONTRAST = 0.6
"""Of the picture's own, what is left under the map: on a paler picture the colour stands out."""


class Place(NamedTuple):
    """A point of a picture, each from 0 to 1."""

    down: float
    across: float

    def __str__(self) -> str:
        """Return it in words, as a person would say where to look."""
        vertical = ("upper", "middle", "lower")[min(2, int(self.down * 3))]
        horizontal = ("left", "middle", "right")[min(2, int(self.across * 3))]
        return "middle" if vertical == horizontal else f"{vertical} {horizontal}"


def preview(picture: Image.Image) -> Image.Image:
    """Return `picture` no larger than is shown."""
    picture = picture.copy()
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
    return picture


def strongest_place(weights: np.ndarray) -> Place:
    """Return the middle of where `weights` [height, width] are largest."""
    is_strongest = weights >= weights.max() * 0.999
    row, col = np.unravel_index(is_strongest.argmax(), weights.shape)
    # A patch is many equal pixels; of several as strong, the first.
    num_down, num_across = (_run(line) for line in (is_strongest[row:, col], is_strongest[row, col:]))
    return Place((row + num_down / 2) / weights.shape[0], (col + num_across / 2) / weights.shape[1])


def _run(line: np.ndarray) -> int:
    """Return how many values at the beginning of `line` are true."""
    return len(line) if line.all() else int(line.argmin())


def overlay(picture: Image.Image, weights: np.ndarray, strongest: float, mark: Place | None = None) -> Image.Image:
    """Return `picture` in pale grey, `weights` [height, width] over it as colour; `strongest` is the largest of all.

    With `mark` a ring is drawn around that place.
    """
    share = (weights / strongest if strongest > 0 else weights * 0).clip(0, 1)
    # Softened, for patches have hard edges and attention has none.
    heat = Image.fromarray((255 * share).round().astype(np.uint8))
    heat = heat.filter(ImageFilter.GaussianBlur(max(weights.shape) * SOFTNESS)).resize(
        picture.size, Image.Resampling.BICUBIC
    )
    heat = np.asarray(heat, dtype=np.float32)[..., None] / 255
    # Softening must not make a small place look weaker than it is.
    heat = heat * (share.max() / max(heat.max(), 1e-3))
    grey = 255 - CONTRAST * (255 - np.asarray(picture.convert("L"), dtype=np.float32)[..., None])
    hidden = STRONGEST * heat**0.7
    out = Image.fromarray((grey * (1 - hidden) + (COOL + (HOT - COOL) * heat) * hidden).round().astype(np.uint8))
    if mark is not None:
        _draw_ring(out, mark)
    return out


def _draw_ring(picture: Image.Image, mark: Place) -> None:
    """Draw a ring that stands out on light and on dark."""
    draw = ImageDraw.Draw(picture)
    radius = max(6, max(picture.size) // 24)
    y, x = mark.down * picture.height, mark.across * picture.width
    for grow, width, colour in ((2, 7, "white"), (0, 3, (16, 42, 110))):
        box = [x - radius - grow, y - radius - grow, x + radius + grow, y + radius + grow]
        draw.ellipse(box, outline=colour, width=max(1, width * max(picture.size) // PREVIEW_SIDE))
