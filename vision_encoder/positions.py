"""Learned positions: which tile of which canvas, and which patch of which tile.

Kept as Hugging Face's tables, one row a canvas id and one slot a tile. Slots that a canvas does not use are zero
in every checkpoint of Meta's; other tables are honoured too (see `unused_slots_equal`).
"""

import torch
from torch import Tensor, nn


class TilePosition(nn.Module):
    """A gated embedding of the tile's place on the canvas."""

    def __init__(self, num_canvases: int, max_tiles: int, width: int):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.table = nn.Parameter(torch.zeros(num_canvases + 1, max_tiles, width))

    def forward(self, canvas_ids: Tensor, used: int, missing: int) -> Tensor:
        """Return what is added to each tile of canvases `canvas_ids` [m]: [m, used + missing, v]."""
        return self.gate.tanh() * _slots(self.table, canvas_ids, used, missing)


class PatchPosition(nn.Module):
    """A position inside the tile, blended by its gate with one inside the whole canvas."""

    def __init__(self, num_canvases: int, max_tiles: int, tokens_per_tile: int, width: int):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.embedding = nn.Parameter(torch.zeros(tokens_per_tile, width))
        self.table = nn.Parameter(torch.zeros(num_canvases + 1, max_tiles, tokens_per_tile, width))

    def forward(self, canvas_ids: Tensor, used: int, missing: int) -> Tensor:
        """Return what is added to each token of these tiles: [m, used + missing, p, v]."""
        gate = self.gate.tanh()
        return (1 - gate) * self.embedding + gate * _slots(self.table, canvas_ids, used, missing)

    def missing_patches_equal(self, canvases: tuple[tuple[int, int], ...]) -> bool:
        """Say whether all patches of a missing tile are placed alike, as where positions are made, not learned.

        In Meta's checkpoints they are not, for the position inside the tile is added to missing tiles too.
        """
        with torch.no_grad():
            inside = ((1 - self.gate.tanh()) * self.embedding)[1:]
            unused = [row[rows * cols :, 1:] for row, (rows, cols) in zip(self.table[1:], canvases, strict=True)]
            return all(bool((part == part[..., :1, :]).all()) for part in (inside, *unused) if part.numel())


def _slots(table: Tensor, canvas_ids: Tensor, used: int, missing: int) -> Tensor:
    """Return the rows of the `used` tiles and of `missing` more, which training never moves: they must stay equal."""
    rows = table[:, : used + missing].index_select(0, canvas_ids)
    return torch.cat([rows[:, :used], rows[:, used:].detach()], dim=1) if missing else rows


def unused_slots_equal(table: Tensor, canvases: tuple[tuple[int, int], ...]) -> bool:
    """Say whether, for every canvas, all slots past its tiles hold the same values, so that one stands for all."""
    for row, (rows, cols) in zip(table[1:], canvases, strict=True):
        unused = row[rows * cols :]
        if len(unused) > 1 and not torch.equal(unused[1:], unused[:1].expand_as(unused[1:])):
            return False
    return True
