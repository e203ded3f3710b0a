"""Fewer patches to go through: most of a chart is paper, and one blank patch can stand for many.

Patches with ink and those beside them stay. Of the others a few do, and ln of how many each stands for is added to the
logits of its key, so that attention is about what it would be over all of them. Of the patches of two by two tiles a
third to a half stay, and attention over them takes an eighth to a third of the time.
An approximation: what it saves is not what Meta's encoder computes, so it is used only where it is asked for.
Source: PatchDropout, Liu et al., arXiv 2208.07220, which leaves out any patches, and weighs none.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

FLAT = 12
"""Levels of 255 by which pixels of a blank patch may differ."""
BLANKS_FOR_ONE = 32
"""Blank patches that one stands for."""


class Kept(NamedTuple):
    """The patches that stay, of pictures [m] on one canvas."""

    patches: Tensor
    """[m, n] int64: which, counted tile by tile, in ascending order."""
    log_counts: Tensor
    """[m, n] float32: ln of how many patches each stands for."""
    stand_ins: Tensor | None = None
    """[m, p] int64: which of those that stay, by their place among them, stands for each patch; None where only those
    that stay are wanted."""


def keep(levels: Tensor, canvas: tuple[int, int], patch_size: int) -> Kept:
    """Choose what stays of a picture `levels` [t, c, height, width] uint8: all but most of the blank patches."""
    ink = inked(levels[None], canvas, patch_size)
    blank = by_tiles(~(ink | neighbours(ink)), canvas)[0]
    # One in so many, and each stands for itself and the next ones.
    number = blank.cumsum(0) - 1
    stays = ~blank | (number % BLANKS_FOR_ONE == 0)
    places = stays.cumsum(0) - 1
    of_blank = places[blank & stays]
    stand_ins = places.clone()
    stand_ins[blank] = of_blank[number[blank] // BLANKS_FOR_ONE]
    counts = stand_ins.bincount(minlength=int(stays.sum()))
    return Kept(stays.nonzero()[None, :, 0], counts.float().log()[None], stand_ins[None])


def inked(levels: Tensor, canvas: tuple[int, int], patch_size: int) -> Tensor:
    """Return which patches [m, y, x] of the canvas hold more than one level of a colour.

    `levels` [m, t, c, height, width] are uint8.
    """
    rows = rearrange(levels, "m t c (y i) x -> m t c y i x", i=patch_size)
    # Rows of pixels first: along the last axis it takes ten times as long.
    highest, lowest = (
        rearrange(part, "m t c y (x j) -> m t c y x j", j=patch_size) for part in (rows.amax(4), rows.amin(4))
    )
    spread = (highest.amax(5) - lowest.amin(5)).amax(2)
    return rearrange(spread > FLAT, "m (rows cols) y x -> m (rows y) (cols x)", rows=canvas[0], cols=canvas[1])


def neighbours(ink: Tensor) -> Tensor:
    """Return which patches [m, y, x] have ink above, below, to the left or to the right."""
    near = torch.zeros_like(ink)
    near[:, 1:] |= ink[:, :-1]
    near[:, :-1] |= ink[:, 1:]
    near[:, :, 1:] |= ink[:, :, :-1]
    near[:, :, :-1] |= ink[:, :, 1:]
    return near


def by_tiles(patches: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return patches [m, y, x] of a canvas tile by tile, [m, p]."""
    return rearrange(patches, "m (rows y) (cols x) -> m (rows cols y x)", rows=canvas[0], cols=canvas[1])
