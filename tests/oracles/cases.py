"""The small models and prompts that every parity test runs: shapes, token ids, pictures, and who sees whom.

Nothing here knows an oracle or our own code. Weights are in `weights.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SmallConfig:
    """The shape of one small model, in the words of a Hugging Face `MllamaConfig`.

    Patches plus the class token leave 1, 2 or 5 over a multiple of 8, never 0 (squares mod 8 are 0, 1, 4);
    `CONFIGS` holds one model of each residue.
    """

    name: str
    """Key in `CONFIGS`."""
    patch_size: int = 14
    """Pixels on a patch's side."""
    tile_size: int = 56
    """Pixels on a tile's side."""
    max_tiles: int = 4
    """Most tiles an image is cut into."""
    vision_dim: int = 32
    """Vision width `v`."""
    vision_heads: int = 4
    """Vision heads."""
    vision_mlp_dim: int = 128
    """Width of the vision feed-forward."""
    num_local_layers: int = 4
    """Layers of the first vision transformer."""
    num_global_layers: int = 2
    """Gated layers of the second vision transformer."""
    feature_layers: tuple[int, ...] = (1, 2, 3)
    """Local layers before which a feature is taken, ascending."""
    text_dim: int = 64
    """Text width `d`."""
    num_heads: int = 4
    """Query heads `h`."""
    num_kv_heads: int = 2
    """Key/value heads `g`."""
    text_mlp_dim: int = 96
    """Width of the text feed-forward."""
    num_text_layers: int = 6
    """Self- and cross-attention layers together."""
    cross_layers: tuple[int, ...] = (1, 4)
    """Places of the cross-attention layers among `num_text_layers`."""
    vocab_size: int = 512
    """Rows of the output; the embedding has 8 more, and the marker is the first of these."""
    rope_factor: float = 8.0
    """Scale factor of the Llama 3.1 RoPE scaling. Meta's code knows 8 only."""

    @property
    def marker(self) -> int:
        """Token id of the image marker as the model is fed it (128256 in the real ones)."""
        return self.vocab_size

    @property
    def grids(self) -> list[Grid]:
        """Every `(rows, cols)` of at most `max_tiles` tiles, in the order of Hugging Face's aspect-ratio ids from 1.

        Source: transformers, image_processing_mllama.get_all_supported_aspect_ratios (its first number is rows).
        """
        sides = range(1, self.max_tiles + 1)
        return [(rows, cols) for rows in sides for cols in sides if rows * cols <= self.max_tiles]

    @property
    def tile_tokens(self) -> int:
        """Tokens per tile `p`: the class token and the patches."""
        return (self.tile_size // self.patch_size) ** 2 + 1

    @property
    def in_meta(self) -> bool:
        """Whether Meta's code can compute this model: factor 8, and a self-attention layer after each cross layer."""
        cross_is_last = self.num_text_layers - 1 in self.cross_layers
        cross_follows_cross = any(place + 1 in self.cross_layers for place in self.cross_layers)
        return self.rope_factor == 8.0 and not cross_is_last and not cross_follows_cross


CONFIGS = {
    config.name: config
    for config in (
        SmallConfig(name="default"),
        SmallConfig(
            name="multi_head",  # h == g, other head widths, a cross layer first of all, the feature before layer 0
            patch_size=7,
            tile_size=35,
            vision_heads=2,
            vision_mlp_dim=96,
            num_local_layers=3,
            num_global_layers=1,
            feature_layers=(0, 2),
            num_heads=2,
            num_kv_heads=2,
            num_text_layers=5,
            cross_layers=(0, 3),
        ),
        SmallConfig(name="two_tiles", tile_size=28, max_tiles=2, num_kv_heads=1, num_text_layers=3, cross_layers=(1,)),
        SmallConfig(name="one_tile", tile_size=42, max_tiles=1, num_text_layers=3, cross_layers=(1,)),
        SmallConfig(name="factor_32", tile_size=28, rope_factor=32.0, num_text_layers=5, cross_layers=(1, 4)),
    )
}
META_CONFIGS = {name: config for name, config in CONFIGS.items() if config.in_meta}

# A number is that many random text tokens; a pair is a marker with an image of (rows, cols) tiles.
PROMPTS: dict[str, tuple[int | Grid, ...]] = {
    "text_only": (40,),
    "one_tile_first": ((1, 1), 7),
    "one_tile_middle": (3, (1, 1), 6),
    "two_tiles_wide": (1, (1, 2), 6),
    "two_tiles_tall": (2, (2, 1), 6),
    "three_tiles_wide": (1, (1, 3), 5),
    "four_tiles_square": (4, (2, 2), 5),
    "four_tiles_tall_first": ((4, 1), 8),
    "four_tiles_wide_last": (6, (1, 4)),
    "one_tile_last": (5, (1, 1)),
    "two_images_adjacent": (2, (1, 1), (2, 1), 6),
    "two_images_apart": (2, (1, 1), 3, (1, 1), 4),
    "two_images_of_other_grids": ((2, 2), 3, (1, 2), 5),
    "three_images": (1, (1, 2), (1, 1), 3, (2, 1), 4),
    "two_images_last": (4, (1, 1), (1, 1)),
}


class Picture(NamedTuple):
    """The tiles of one image as the vision encoder gets them."""

    pixels: Tensor
    """`[t, 3, tile_size, tile_size]` float32, normalised, the used tiles only, row by row."""
    grid: Grid
    """`(rows, cols)`, rows * cols = t."""


class Case(NamedTuple):
    """One prompt of one small model."""

    ids: list[int]
    """Token ids `[s]`, a marker for each image."""
    images: list[Picture]
    """The images in the order of their markers."""


def prompt_names(config: SmallConfig) -> list[str]:
    """The prompts whose every image this model can hold."""
    fits = {
        name: all(part in config.grids for part in parts if not isinstance(part, int))
        for name, parts in PROMPTS.items()
    }
    return [name for name, fit in fits.items() if fit]


def build_case(config: SmallConfig, prompt: str, seed: int = 0) -> Case:
    """Draw the token ids and the tiles of a prompt of `PROMPTS`."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    images: list[Picture] = []
    for part in PROMPTS[prompt]:
        if isinstance(part, int):
            ids += torch.randint(config.vocab_size, (part,), generator=generator).tolist()
            continue
        ids.append(config.marker)
        shape = (part[0] * part[1], 3, config.tile_size, config.tile_size)
        images.append(Picture(torch.randn(shape, generator=generator), part))
    return Case(ids, images)


def visible_images(ids: list[int], marker: int) -> Tensor:
    """Which image each token sees: bool `[s, m]`, True where it sees it.

    A token sees the latest image up to and with itself; images whose markers follow each other directly are seen
    together from the later marker on. Written from the rule, not from the interval code that it must equal.
    Source: llama-models, llama3/chat_format.py `create_vision_mask`; model_facts 4.
    """
    places = [place for place, token in enumerate(ids) if token == marker]
    mask = torch.zeros(len(ids), len(places), dtype=torch.bool)
    for row in range(len(ids)):
        seen = [image for image, place in enumerate(places) if place <= row]
        for image in reversed(seen):
            mask[row, image] = True
            if image == 0 or places[image - 1] != places[image] - 1:
                break
    return mask
