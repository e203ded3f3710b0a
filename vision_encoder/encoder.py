"""The vision encoder: tiles to features, equal to Meta's on every real tile.

Source: llama-models models/llama3/multimodal/model.py, VisionEncoder.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vision_encoder.config import VisionConfig
from vision_encoder.positions import PatchPosition, TilePosition, unused_slots_equal
from vision_encoder.thinning import Kept
from vision_encoder.transformer import RowLayout, VisionLayer


class VisionEncoder(nn.Module):
    """A vision transformer of local layers, then gated global ones, over all tiles of a picture at once."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, num_canvases = config.width, len(config.canvases)
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, width, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.tile_position_before = TilePosition(num_canvases, config.max_tiles, width)
        self.patch_position = PatchPosition(num_canvases, config.max_tiles, config.tokens_per_tile, width)
        self.tile_position_after = TilePosition(num_canvases, config.max_tiles, width)
        self.norm_before = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm_after = nn.LayerNorm(width, eps=config.norm_eps)
        self.local_layers = self._layers(config.num_local_layers, gated=False)
        self.global_layers = self._layers(config.num_global_layers, gated=True)
        nn.init.normal_(self.patch_position.embedding, std=width**-0.5)
        self.missing_tiles_equal = True
        self.missing_patches_equal = False
        self.register_load_state_dict_post_hook(_inspect_tables)

    def forward(self, pixels: Tensor, canvases: list[tuple[int, int]] | Tensor, kept: Kept | None = None) -> Tensor:
        """Return the features [m, t, p, f] of `pixels` [m, t, c, height, width] on `canvases` (rows, cols) [m, 2].

        `t` is anything from the most tiles a picture here uses to `max_tiles`; only the first rows * cols tiles of
        a picture are read. Features past them are what the encoder makes of a missing tile.

        kept: of pictures on one canvas, without missing tiles, the patches to go through (see `thinning.py`); the
        others get the features of what stands in for them.
        """
        canvases = [tuple(canvas) for canvas in torch.as_tensor(canvases).tolist()]
        self._check(pixels, canvases)
        canvas_ids = torch.tensor([1 + self.config.canvases.index(canvas) for canvas in canvases])
        num_tiles = torch.tensor([rows * cols for rows, cols in canvases])
        pixels = pixels.to(self.class_embedding.dtype)
        if kept is not None:
            return self._filled(self.encode_kept(pixels, canvas_ids.to(pixels.device), kept), pixels.shape[1], kept)
        # Pictures of equally many tiles go through together; a batch then needs no mask either.
        groups = [(num_tiles == used).nonzero()[:, 0] for used in num_tiles.unique()]
        if len(groups) == 1:
            # The common case, without a copy of the pixels.
            return self._encode(pixels[:, : num_tiles[0]], canvas_ids.to(pixels.device), pixels.shape[1])
        parts = [
            self._encode(pixels[group, : num_tiles[group[0]]], canvas_ids[group].to(pixels.device), pixels.shape[1])
            for group in groups
        ]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _encode(self, pixels: Tensor, canvas_ids: Tensor, num_returned: int) -> Tensor:
        """Return [m, num_returned, p, f] for pictures that all use the tiles `pixels` [m, t, c, height, width]."""
        plan = self.plan(pixels.shape[1], pixels.device)
        return self._tiles(self.transform(self.embed(pixels, canvas_ids, plan), canvas_ids, plan), plan, num_returned)

    def encode_kept(self, pixels: Tensor, canvas_ids: Tensor, kept: Kept | None) -> Tensor:
        """Return features [m, t + n, f]: of the class tokens, then of the patches that are kept, or else of all.

        All pictures `pixels` [m, t, c, height, width] are on one canvas and use all `t` tiles.
        """
        plan = self.plan(pixels.shape[1], pixels.device)
        x = self.embed(pixels, canvas_ids, plan)
        rows, plan = self._thinned(plan, len(pixels), kept)
        x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
        return self.transform(x, canvas_ids, plan)[:, : plan.layout.num_real]

    def _thinned(self, plan: "RowPlan", num_pictures: int, kept: Kept | None) -> tuple[Tensor, "RowPlan"]:
        """Return which rows [m, rows] of `plan` stay, class tokens first, and how they are laid out."""
        num_real, tokens_per_tile = plan.layout.num_real, self.config.tokens_per_tile
        rows = torch.arange(len(plan.slots), device=plan.slots.device)
        tokens, rest = rows[:num_real].view(plan.used, tokens_per_tile), rows[num_real:]
        class_tokens, patches = tokens[:, 0], tokens[:, 1:].flatten()
        log_counts = plan.layout.log_counts
        if kept is None:
            patches = patches.expand(num_pictures, -1)
        else:
            patches = patches[kept.patches.to(patches.device)]
            counts = torch.zeros(len(rows), device=rows.device) if log_counts is None else log_counts.clone()
            if self.missing_patches_equal:
                # All patches of a missing tile are equal rows then: the first stands for them.
                missing = rest[plan.num_padding :].view(plan.kept, tokens_per_tile + 1)
                counts[missing[:, 1]] += math.log(tokens_per_tile - 1)
                rest = torch.cat([rest[: plan.num_padding], missing[:, [0, 1, -1]].flatten()])
            before, after = (counts[part].expand(num_pictures, -1) for part in (class_tokens, rest))
            log_counts = torch.cat([before, kept.log_counts.to(before.device), after], dim=1)
        rows = torch.cat([class_tokens.expand(num_pictures, -1), patches, rest.expand(num_pictures, -1)], dim=1)
        layout = RowLayout(plan.used + patches.shape[1], log_counts)
        return rows, plan._replace(slots=plan.slots[rows], layout=layout)

    def _filled(self, features: Tensor, num_tiles: int, kept: Kept) -> Tensor:
        """Return features [m, t + n, f] as tiles [m, t, p, f], with those of its stand-in for each patch."""
        class_tokens, patches = features[:, :num_tiles, None], features[:, num_tiles:]
        stand_ins = kept.stand_ins.to(features.device)[..., None].expand(-1, -1, features.shape[-1])
        filled = patches.gather(1, stand_ins).unflatten(1, (num_tiles, -1))
        return torch.cat([class_tokens, filled], dim=2)

    def transform(self, x: Tensor, canvas_ids: Tensor, plan: "RowPlan") -> Tensor:
        """Return the features [m, rows, f] of rows x [m, rows, v], which are laid out as `plan` says."""
        taken = []
        for index, layer in enumerate(self.local_layers):
            if index in self.config.feature_layers and self.config.feature_point == "before":
                taken.append(x)
            x = layer(x, plan.layout)
            if index in self.config.feature_layers and self.config.feature_point == "after":
                taken.append(x)
        x = self.norm_after(x)
        # index_select, unlike an index, has a gradient that several threads add up in the same order every time.
        x = x + _of_slots(self.tile_position_after(canvas_ids, plan.used, plan.kept), plan.slots)
        for layer in self.global_layers:
            x = layer(x, plan.layout)
        # The intermediate states are interleaved on the last axis, after the final output.
        features = [x] if not taken else [x, torch.stack(taken, dim=-1).flatten(-2)]
        return torch.cat(features, dim=-1)

    def plan(self, used: int, device: torch.device) -> "RowPlan":
        """Lay out the rows: real tokens, one padding row for each of their tiles, then the missing tiles' rows."""
        config = self.config
        missing = config.max_tiles - used
        kept = min(missing, 1) if self.missing_tiles_equal else missing
        times = missing // kept if kept else 0
        p, padding = config.tokens_per_tile, config.num_padding_tokens
        # Where counts would be all that keeps the quickest kernels away, each padding row is one.
        each = padding if not kept and _takes_no_bias(device) else 1
        slots = torch.arange(used).repeat_interleave(p).tolist() + torch.arange(used).repeat_interleave(each).tolist()
        counts = [1] * (used * p) + [padding // each] * (used * each)
        for slot in range(used, used + kept):
            slots += [slot] * (p + 1)
            counts += [times] * p + [times * padding]
        log_counts = None if {*counts} == {1} else torch.tensor([math.log(count) for count in counts], device=device)
        return RowPlan(used, kept, used * each, torch.tensor(slots, device=device), RowLayout(used * p, log_counts))

    def embed(self, pixels: Tensor, canvas_ids: Tensor, plan: "RowPlan") -> Tensor:
        """Return the rows [m, rows, v] that enter the first layer."""
        size = self.config.patch_size
        patches = rearrange(pixels, "m t c (y i) (x j) -> m t (y x) (c i j)", i=size, j=size)
        x = self.patch_embedding(patches)
        # A missing tile is zero after normalising, so its patches embed to zero.
        x = torch.cat([x, x.new_zeros(len(x), plan.kept, *x.shape[2:])], dim=1)
        x = x + self.tile_position_before(canvas_ids, plan.used, plan.kept)[:, :, None]
        class_token = repeat(self.class_embedding, "v -> m t 1 v", m=x.shape[0], t=x.shape[1])
        x = torch.cat([class_token, x], dim=2)
        x = self.norm_before(x + self.patch_position(canvas_ids, plan.used, plan.kept))
        real, missing = x[:, : plan.used], x[:, plan.used :]
        padding = x.new_zeros(len(x), plan.num_padding, x.shape[-1])
        missing = torch.cat([missing, missing.new_zeros(*missing.shape[:2], 1, missing.shape[-1])], dim=2)
        return torch.cat([real.flatten(1, 2), padding, missing.flatten(1, 2)], dim=1)

    def _tiles(self, rows: Tensor, plan: "RowPlan", num_returned: int) -> Tensor:
        """Return rows [m, rows, f] as tiles [m, num_returned, p, f], dropping the padding rows."""
        p = self.config.tokens_per_tile
        real = rearrange(rows[:, : plan.used * p], "m (t p) f -> m t p f", p=p)
        if num_returned == plan.used:
            return real
        missing = rearrange(rows[:, plan.used * p + plan.num_padding :], "m (t p) f -> m t p f", p=p + 1)[:, :, :p]
        wanted = num_returned - plan.used
        missing = missing.expand(-1, wanted, -1, -1) if plan.kept == 1 else missing[:, :wanted]
        return torch.cat([real, missing], dim=1)

    def inspect_tables(self) -> None:
        """See whether one missing tile may stand for all, and one patch of it for its others; runs by itself after
        loading a state dict.
        """
        tables = (self.tile_position_before.table, self.patch_position.table, self.tile_position_after.table)
        self.missing_tiles_equal = all(unused_slots_equal(table.detach(), self.config.canvases) for table in tables)
        self.missing_patches_equal = self.patch_position.missing_patches_equal(self.config.canvases)

    def _layers(self, count: int, *, gated: bool) -> nn.ModuleList:
        config = self.config
        layer = (config.width, config.num_heads, config.mlp_dim, config.norm_eps)
        return nn.ModuleList(VisionLayer(*layer, gated=gated) for _ in range(count))

    def _check(self, pixels: Tensor, canvases: list[tuple[int, int]]) -> None:
        side = self.config.tile_size
        if pixels.ndim != 5 or pixels.shape[2:] != (3, side, side):
            raise ValueError(f"pixels have shape {list(pixels.shape)}; give [m, t, 3, {side}, {side}]")
        if len(canvases) != len(pixels):
            raise ValueError(f"{len(pixels)} pictures came with {len(canvases)} canvases; give one (rows, cols) each")
        for rows, cols in canvases:
            if (rows, cols) not in self.config.canvases or not rows * cols <= pixels.shape[1] <= self.config.max_tiles:
                raise ValueError(
                    f"canvas {rows} x {cols} does not go with {pixels.shape[1]} tiles; give a canvas of at most "
                    f"{self.config.max_tiles} tiles, and no fewer tiles than it has"
                )


class RowPlan(NamedTuple):
    """How the tiles of a picture are laid out as rows."""

    used: int
    """Tiles that hold pixels."""
    kept: int
    """Missing tiles that are encoded: 1 when one can stand for all."""
    num_padding: int
    """Padding rows of the tiles that hold pixels."""
    slots: Tensor
    """[rows] int64, or [m, rows]: the tile slot each row belongs to."""
    layout: RowLayout


def _of_slots(x: Tensor, slots: Tensor) -> Tensor:
    """Return of each picture in x [m, slots, v] the rows `slots` [rows], or its own of [m, rows]."""
    return x.index_select(1, slots) if slots.ndim == 1 else x.gather(1, slots[..., None].expand(-1, -1, x.shape[-1]))


def _inspect_tables(encoder: VisionEncoder, _: object) -> None:
    encoder.inspect_tables()


def _takes_no_bias(device: torch.device) -> bool:
    """Return whether attention is soonest done there by kernels that add nothing to the logits."""
    return device.type == "cuda"
