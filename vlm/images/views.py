"""A picture in several views: as it comes, shifted by part of a patch, and larger where there is room.

What is misread in one view is seldom misread in all of them: print that a border of patches cuts in one is whole in
another. Each view is encoded alone, and a reply is written from the mean of the decoder's states over all of them.
"""

from typing import NamedTuple

from PIL import Image
from torch import Tensor

from vision_encoder.preprocess import ImageProcessor
from vision_encoder.thinning import Kept, keep

ATTENTION = 0.42
"""Most that the thinned views of a picture may take together, as a share of the attention over all patches of a full
canvas. A picture that takes more alone is shrunk, and of further views there are as many as fit."""


class View(NamedTuple):
    """How a picture is shown."""

    scale: float
    """Of the size that the tiles would have it at; above 1 of its own."""
    down: float = 0.0
    """How far it is shifted, in patches."""
    right: float = 0.0


VIEWS = (
    View(1.0),
    View(1.0, 0.5, 0.5),
    View(1.25),
    View(1.0, 0.25, 0.75),
    View(1.25, 0.5, 0.5),
    View(1.0, 0.75, 0.25),
    View(1.5),
    View(1.25, 0.25, 0.75),
)
"""In this order, as many as are wanted of those for which a canvas has room."""


class Shown(NamedTuple):
    """A view of a picture as the encoder takes it."""

    levels: Tensor
    """[t, c, height, width] uint8"""
    canvas: tuple[int, int]
    """(rows, cols) in tiles."""
    kept: Kept | None
    """The patches to go through; None for all."""
    scale: float
    """Of the size that the tiles would have it at."""


def show(picture: Image.Image, processor: ImageProcessor, num_views: int, *, thinned: bool) -> list[Shown]:
    """Return the views of `picture`, which is what `read_image` returned; the first is as it comes, or shrunk."""
    shown: list[Shown] = []
    room = ATTENTION
    for view in VIEWS:
        if len(shown) == num_views:
            break
        one = _shown(picture, processor, view, thinned)
        if one is None:
            continue
        while thinned and not shown and _cost(one, processor) > room and one.canvas != (1, 1):
            # What is shrunk is fuller, so the next step is a guess again, and a little more than is asked. Less than a
            # tile there is not: a smaller picture is enlarged to it.
            view = view._replace(scale=view.scale * 0.98 * (room / _cost(one, processor)) ** 0.25)
            one = _shown(picture, processor, view, thinned)
        if thinned:
            cost = _cost(one, processor)
            if shown and cost > room:
                continue
            room -= cost
        shown.append(one)
    return shown


def scaled_size(size: tuple[int, int], processor: ImageProcessor, scale: float) -> tuple[int, int]:
    """Return the (height, width) at which a picture of `size` is given to the processor to be seen at `scale`."""
    if scale == 1:
        return size
    # Above 1 of the picture's own size: what tiles have to enlarge by themselves is large already.
    base = size if scale > 1 else processor.placement(size)[1]
    return tuple(max(1, round(side * scale)) for side in base)


def _shown(picture: Image.Image, processor: ImageProcessor, view: View, thinned: bool) -> Shown | None:
    """Return a view; None where a canvas has no room for it."""
    size = (picture.height, picture.width)
    margin = tuple(round(steps * processor.config.patch_size) for steps in (view.down, view.right))
    target = scaled_size(size, processor, view.scale)
    if view.scale > 1 and processor.placement(target)[1] != target:
        return None
    if any(margin):
        _, fitted = processor.placement(target)
        padded = (fitted[0] + margin[0], fitted[1] + margin[1])
        shrunk = processor.placement(padded)[1][0] / padded[0]
        target = tuple(max(1, int(side * min(1.0, shrunk))) for side in fitted)
    if target != size:
        picture = picture.resize(target[::-1], Image.Resampling.LANCZOS)
    if any(margin):
        # The colour of a corner is the paper's, for all but photographs.
        paper = Image.new("RGB", (picture.width + margin[1], picture.height + margin[0]), picture.getpixel((0, 0)))
        paper.paste(picture, margin[::-1])
        picture = paper
    levels, canvas = processor.levels(picture)
    kept = keep(levels, canvas, processor.config.patch_size) if thinned else None
    return Shown(levels, canvas, kept, view.scale)


def _cost(shown: Shown, processor: ImageProcessor) -> float:
    """Return the attention of a thinned view as a share of that over all patches of a full canvas."""
    config = processor.config
    return (shown.kept.patches.shape[1] / (config.max_tiles * config.num_patches)) ** 2
