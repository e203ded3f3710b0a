"""Which patches of a batch of pictures stay when blank ones are thinned, drawn anew for each batch.

As `vision_encoder.thinning`, which says what for, but of all pictures of a batch as many stay, and which blank ones is
chance.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vision_encoder.thinning import Kept, by_tiles, inked, neighbours

SHARE_WHOLE = 0.85
"""Of the pictures of a batch, those that keep all patches with ink and beside ink."""
SHARE_BLANK = 0.04
"""Of the patches of a picture, how many blank ones stay at least."""
NUM_SIZES = 16
"""Numbers of patches that may stay: for each, kernels make a plan of their own."""


def keep(pixels: Tensor, canvas: tuple[int, int], patch_size: int, rng: np.random.Generator) -> Kept:
    """Choose what stays of pictures `pixels` [m, t, c, height, width] uint8; nothing stands in for the rest."""
    ink = inked(pixels, canvas, patch_size)
    beside = neighbours(ink) & ~ink
    ink, beside = (by_tiles(part, canvas).numpy() for part in (ink, beside))
    num_patches = ink.shape[1]
    num_blank = math.ceil(SHARE_BLANK * num_patches)
    step = math.ceil(num_patches / NUM_SIZES)
    wanted = np.quantile((ink | beside).sum(1), SHARE_WHOLE) + num_blank
    num_kept = min(num_patches, step * math.ceil(wanted / step))
    # What stays first: some blank patches, then ink, then what is beside it, then further blank ones.
    draw = rng.random(ink.shape)
    blank = ~(ink | beside)
    some = blank & (np.where(blank, draw, 2).argsort(1).argsort(1) < num_blank)
    order = (draw - 3 * some - 2 * ink - beside).argsort(1)
    patches = np.sort(order[:, :num_kept], axis=1)
    log_counts = np.zeros(patches.shape, dtype=np.float32)
    for kind in (ink, beside, blank):
        stays = np.take_along_axis(kind, patches, axis=1)
        counts = kind.sum(1) / stays.sum(1).clip(1)
        log_counts += np.where(stays, np.log(counts.clip(1))[:, None], 0).astype(np.float32)
    return Kept(torch.from_numpy(patches), torch.from_numpy(log_counts))
