"""Fixed positions for the vision encoder: sines and cosines of a patch's row and column on the whole canvas.

The model's position tables are learned in other checkpoints. Here they are filled once and left alone, so that what is
learned on small pictures holds anywhere on larger ones: two patches lie to each other as they do everywhere else.
They have the last third of the width to themselves. Where they share it with what the patches hold, they drown: what
the layers add grows tenfold, and nothing after the first of them can tell where a patch lies.
Source: Vaswani et al., arXiv 1706.03762, section 3.5, for rows and columns apart.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from vision_encoder.config import VisionConfig
from vision_encoder.encoder import VisionEncoder
from vision_encoder.positions import PatchPosition, TilePosition
from vlm.model import VisionLanguageModel

SHORTEST, LONGEST = 3.0, 100.0
"""Wavelengths, in patches."""
AMPLITUDE = 4.0
REACH = 80
"""Patches along a canvas up to which positions are a patch apart. Along a longer one they are drawn together to span as
many: what was learned on shorter ones holds there, and beyond it nothing does."""
OPEN_GATE = 10.0
"""Its tanh is 1 in float32: positions are those of the table of canvases alone."""


def num_position_dims(width: int) -> int:
    """Return how many of `width` dims, the last ones, hold positions: a third, in fours."""
    return width // 12 * 4


def sinusoids(rows: Tensor, cols: Tensor, width: int) -> Tensor:
    """Return [..., width] for patches at `rows` and `cols` [...]: zeros, then the positions."""
    num_dims = num_position_dims(width)
    angles = [places[..., None].float() * _frequencies(num_dims) for places in (rows, cols)]
    positions = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)
    return functional.pad(AMPLITUDE * positions, (width - num_dims, 0))


def shift(rows: float, cols: float, width: int) -> Tensor:
    """Return the square matrix that takes the position of a patch to that of the patch so far before it."""
    num_dims = num_position_dims(width)
    blocks = []
    for steps in (rows, cols):
        cos, sin = (
            torch.diag(wave)
            for wave in ((steps * _frequencies(num_dims)).cos(), (steps * _frequencies(num_dims)).sin())
        )
        blocks.append(torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]))
    return torch.block_diag(*blocks)


def _frequencies(num_dims: int) -> Tensor:
    """Return the angle per patch of each wave, [num_dims / 4]."""
    num_waves = num_dims // 4
    waves = SHORTEST * (LONGEST / SHORTEST) ** (torch.arange(num_waves) / (num_waves - 1))
    return 2 * math.pi / waves


@torch.no_grad()
def place_tile(encoder: VisionEncoder, offset: tuple[int, int] = (0, 0)) -> None:
    """Write the positions of a single tile whose first patch lies at `offset` (rows, cols)."""
    position, config = encoder.patch_position, encoder.config
    grid = torch.arange(config.grid)
    table = sinusoids(
        (grid + offset[0])[:, None].expand(-1, config.grid),
        (grid + offset[1])[None].expand(config.grid, -1),
        config.width,
    )
    position.gate.zero_()
    position.embedding.zero_()
    position.embedding[1:] = table.flatten(0, 1)


@torch.no_grad()
def place_canvases(encoder: VisionEncoder) -> None:
    """Write the positions of every tile of every canvas: patches are counted over the whole canvas.

    Drawing positions together is Chen et al.'s (arXiv 2306.15595), there for rotary ones.
    """
    position, config = encoder.patch_position, encoder.config
    place_tile(encoder)
    if config.max_tiles == 1:
        return
    position.gate.fill_(OPEN_GATE)
    position.table.zero_()
    grid = torch.arange(config.grid)
    for canvas_id, (rows, cols) in enumerate(config.canvases, 1):
        apart = [min(1.0, REACH / (number * config.grid)) for number in (rows, cols)]
        for tile in range(rows * cols):
            row, col = (
                steps * (side * config.grid + grid) for side, steps in zip(divmod(tile, cols), apart, strict=True)
            )
            table = sinusoids(row[:, None].expand(-1, config.grid), col[None].expand(config.grid, -1), config.width)
            position.table[canvas_id, tile, 1:] = table.flatten(0, 1)
    encoder.inspect_tables()


def retile(model: VisionLanguageModel, vision: VisionConfig) -> None:
    """Give the model other tiles. No position is trained, so only these tables have to be made anew."""
    encoder, num_canvases = model.encoder, len(vision.canvases)
    model.config = replace(model.config, vision=vision)
    encoder.config = vision
    encoder.patch_position = PatchPosition(num_canvases, vision.max_tiles, vision.tokens_per_tile, vision.width)
    encoder.tile_position_before = TilePosition(num_canvases, vision.max_tiles, vision.width)
    encoder.tile_position_after = TilePosition(num_canvases, vision.max_tiles, vision.width)
    for part in (encoder.patch_position, encoder.tile_position_before, encoder.tile_position_after):
        part.requires_grad_(False).to(encoder.class_embedding.device)
    place_canvases(encoder)
