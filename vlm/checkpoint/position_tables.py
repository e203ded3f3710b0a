"""Position tables: one row a canvas here and in Hugging Face's files, one grid of cells shared by all in Meta's.

Source: transformers models/mllama/convert_mllama_weights_to_hf.py, pre_compute_positional_embedding.
"""

import torch
from einops import rearrange
from torch import Tensor

from vision_encoder.config import VisionConfig


def cells_from_slots(table: Tensor, config: VisionConfig) -> Tensor:
    """Gather the cells [rows, cols, ...] of a table [canvases + 1, slots, ...]; cells that no canvas has are zero."""
    cells = table.new_zeros(config.max_tiles, config.max_tiles, *table.shape[2:])
    for slots, (rows, cols) in zip(table[1:], config.canvases, strict=True):
        cells[:rows, :cols] = rearrange(slots[: rows * cols], "(rows cols) ... -> rows cols ...", rows=rows)
    return cells


def slots_from_cells(cells: Tensor, config: VisionConfig) -> Tensor:
    """Spread cells [rows, cols, ...] over a table [canvases + 1, slots, ...]; row 0 and unused slots are zero."""
    table = cells.new_zeros(len(config.canvases) + 1, config.max_tiles, *cells.shape[2:])
    for slots, (rows, cols) in zip(table[1:], config.canvases, strict=True):
        slots[: rows * cols] = rearrange(cells[:rows, :cols], "rows cols ... -> (rows cols) ...")
    return table


def why_not_cells(table: Tensor, config: VisionConfig) -> str | None:
    """Say what keeps a table from being spread from one grid of cells; None where nothing does."""
    if table[0].any():
        return "its row 0, of no canvas, is not zero"
    spread = slots_from_cells(cells_from_slots(table, config), config)
    for slots, expected, (rows, cols) in zip(table[1:], spread[1:], config.canvases, strict=True):
        if slots[rows * cols :].any():
            return f"slots that the canvas of {rows} x {cols} tiles does not use are not zero"
        if not torch.equal(slots, expected):
            return f"the canvas of {rows} x {cols} tiles has other values than another canvas at the same place"
    return None
