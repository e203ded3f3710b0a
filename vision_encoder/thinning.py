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
SHARE_GIVEN = 0.5
"""Of the patches, those whose tokens the decoder is given, if so many stay; blank ones fill up. The shipped reader was
trained on smaller tiles, and counts by how much of what it sees is blank."""


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


def given(kept: Kept, num_tiles: int) -> Tensor:
    """Return which tokens of the one picture of `kept` the decoder is given, [n] int64, counted over all tiles.

    Those of the class tokens and of the patches that stay, and of as many others as `SHARE_GIVEN` has room for.
    """
    num_patches = kept.stand_ins.shape[1]
    chosen = torch.zeros(num_patches, dtype=torch.bool).index_fill(0, kept.patches[0], True)
    others = (~chosen).nonzero()[:, 0]
    room = min(len(others), max(0, int(SHARE_GIVEN * num_patches) - kept.patches.shape[1]))
    # Evenly over the canvas.
    chosen[others[torch.arange(room) * len(others) // max(1, room)]] = True
    tokens = torch.cat([torch.ones(num_tiles, 1, dtype=torch.bool), chosen.view(num_tiles, -1)], dim=1)
    return tokens.flatten().nonzero()[:, 0]


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
