"""Fewer rows for the encoder to go through: most of a chart is paper, and one blank patch can stand for many.

Patches with ink and those beside them stay. Of the others a few are drawn, and ln of how many each stands for is added
to the logits of its key, so that on average attention is what it would be over all of them. About half of the patches
of two by two tiles stay, and attention over them takes a third of the time.
Source: PatchDropout, Liu et al., arXiv 2208.07220, which leaves out any patches, and weighs none.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vision_encoder.encoder import RowPlan, VisionEncoder
from vision_encoder.transformer import RowLayout

FLAT = 12
"""Levels of 255 by which pixels of a blank patch may differ."""
SHARE_WHOLE = 0.85
"""Of the pictures of a batch, those that keep all patches with ink and beside ink."""
SHARE_BLANK = 0.04
"""Of the patches of a picture, how many blank ones stay at least."""
NUM_SIZES = 16
"""Numbers of patches that may stay: for each, kernels make a plan of their own."""


class Kept(NamedTuple):
    """The patches that stay, of a batch of pictures."""

    patches: Tensor
    """[m, n] int64: which, counted tile by tile, in ascending order."""
    log_counts: Tensor
    """[m, n] float32: ln of how many patches each stands for."""


def keep(pixels: Tensor, canvas: tuple[int, int], patch_size: int, rng: np.random.Generator) -> Kept:
    """Choose what stays of pictures `pixels` [m, t, c, height, width] uint8."""
    inked = _inked(pixels, canvas, patch_size)
    beside = _neighbours(inked) & ~inked
    inked, beside = (_by_tiles(part, canvas) for part in (inked, beside))
    num_patches = inked.shape[1]
    num_blank = math.ceil(SHARE_BLANK * num_patches)
    step = math.ceil(num_patches / NUM_SIZES)
    wanted = np.quantile((inked | beside).sum(1), SHARE_WHOLE) + num_blank
    num_kept = min(num_patches, step * math.ceil(wanted / step))
    # What stays first: some blank patches, then ink, then what is beside it, then further blank ones.
    draw = rng.random(inked.shape)
    blank = ~(inked | beside)
    some = blank & (np.where(blank, draw, 2).argsort(1).argsort(1) < num_blank)
    order = (draw - 3 * some - 2 * inked - beside).argsort(1)
    patches = np.sort(order[:, :num_kept], axis=1)
    log_counts = np.zeros(patches.shape, dtype=np.float32)
    for kind in (inked, beside, blank):
        stays = np.take_along_axis(kind, patches, axis=1)
        counts = kind.sum(1) / stays.sum(1).clip(1)
        log_counts += np.where(stays, np.log(counts.clip(1))[:, None], 0).astype(np.float32)
    return Kept(torch.from_numpy(patches), torch.from_numpy(log_counts))


def encode_rows(encoder: VisionEncoder, pixels: Tensor, canvas: tuple[int, int], kept: Kept | None) -> Tensor:
    """Return features [m, t + n, f]: of the class tokens, then of the patches that are kept, or else of all.

    pixels [m, t, c, height, width] are normalised, and all pictures are on `canvas`.
    """
    num_pictures, used = pixels.shape[:2]
    plan = encoder.plan(used, pixels.device)
    canvas_id = 1 + encoder.config.canvases.index(canvas)
    canvas_ids = torch.full((num_pictures,), canvas_id, device=pixels.device)
    x = encoder.embed(pixels, canvas_ids, plan)
    rows, plan = _thinned(plan, encoder.config.tokens_per_tile, num_pictures, kept)
    x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
    return encoder.transform(x, canvas_ids, plan)[:, : plan.layout.num_real]


def _thinned(plan: RowPlan, tokens_per_tile: int, num_pictures: int, kept: Kept | None) -> tuple[Tensor, RowPlan]:
    """Return which rows [m, rows] of `plan` stay, class tokens first, and how they are laid out."""
    num_real = plan.layout.num_real
    rows = torch.arange(len(plan.slots), device=plan.slots.device)
    tokens, rest = rows[:num_real].view(plan.used, tokens_per_tile), rows[num_real:]
    class_tokens, patches = tokens[:, 0], tokens[:, 1:].flatten()
    log_counts = plan.layout.log_counts
    if kept is None:
        patches = patches.expand(num_pictures, -1)
    else:
        patches = patches[kept.patches]
        counts = torch.zeros(len(rows), device=rows.device) if log_counts is None else log_counts.clone()
        # Positions being made, all patches of a missing tile are equal rows: the first stands for them.
        missing = rest[plan.num_padding :].view(plan.kept, tokens_per_tile + 1)
        counts[missing[:, 1]] += math.log(tokens_per_tile - 1)
        rest = torch.cat([rest[: plan.num_padding], missing[:, [0, 1, -1]].flatten()])
        before, after = (counts[part].expand(num_pictures, -1) for part in (class_tokens, rest))
        log_counts = torch.cat([before, kept.log_counts, after], dim=1)
    rows = torch.cat([class_tokens.expand(num_pictures, -1), patches, rest.expand(num_pictures, -1)], dim=1)
    layout = RowLayout(plan.used + patches.shape[1], log_counts)
    return rows, plan._replace(slots=plan.slots[rows], layout=layout)


def _inked(pixels: Tensor, canvas: tuple[int, int], patch_size: int) -> np.ndarray:
    """Return which patches [m, y, x] of the canvas hold more than one level of a colour."""
    rows = rearrange(pixels.numpy(), "m t c (y i) x -> m t c y i x", i=patch_size)
    # Rows of pixels first: along the last axis it takes ten times as long.
    highest, lowest = (
        rearrange(part, "m t c y (x j) -> m t c y x j", j=patch_size) for part in (rows.max(4), rows.min(4))
    )
    spread = (highest.max(5) - lowest.min(5)).max(2)
    return rearrange(spread > FLAT, "m (rows cols) y x -> m (rows y) (cols x)", rows=canvas[0], cols=canvas[1])


def _neighbours(inked: np.ndarray) -> np.ndarray:
    """Return which patches [m, y, x] have ink above, below, to the left or to the right."""
    near = np.zeros_like(inked)
    near[:, 1:] |= inked[:, :-1]
    near[:, :-1] |= inked[:, 1:]
    near[:, :, 1:] |= inked[:, :, :-1]
    near[:, :, :-1] |= inked[:, :, 1:]
    return near


def _by_tiles(patches: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Return patches [m, y, x] of a canvas tile by tile, [m, p]."""
    return rearrange(patches, "m (rows y) (cols x) -> m (rows cols y x)", rows=canvas[0], cols=canvas[1])
