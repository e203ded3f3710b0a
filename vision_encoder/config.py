"""The numbers of the vision encoder. Derived sizes are properties; nothing is stored twice."""

from dataclasses import dataclass
from typing import Literal

from vision_encoder.tiling import supported_canvases


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """One vision encoder and the tiles it is fed."""

    tile_size: int
    """Side of a tile in pixels; a multiple of `patch_size`."""
    max_tiles: int
    """Most tiles a picture is cut into."""
    patch_size: int
    """Side of a patch in pixels."""
    width: int
    """Width `v` of a token inside the encoder."""
    num_heads: int
    """Attention heads of every layer."""
    mlp_dim: int
    """Hidden width of the feed-forward."""
    num_local_layers: int
    """Layers before the second tile embedding."""
    num_global_layers: int
    """Gated layers after it."""
    feature_layers: tuple[int, ...]
    """Local layers whose hidden state is a feature too, in rising order."""
    feature_point: Literal["before", "after"] = "before"
    """Where these are taken: "before" the layer (Meta) or "after" it (transformers >= 4.56)."""
    norm_eps: float = 1e-5
    """Epsilon of every LayerNorm."""

    def __post_init__(self):
        for name in ("tile_size", "max_tiles", "patch_size", "width", "num_heads", "mlp_dim", "num_local_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tile_size % self.patch_size:
            raise ValueError(f"tile_size {self.tile_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        if self.num_global_layers < 0:
            raise ValueError(f"num_global_layers is {self.num_global_layers}; it must not be negative")
        if self.feature_point not in ("before", "after"):
            raise ValueError(f'feature_point is {self.feature_point!r}; it must be "before" or "after"')
        layers = self.feature_layers
        if list(layers) != sorted(set(layers)) or any(not 0 <= i < self.num_local_layers for i in layers):
            raise ValueError(
                f"feature_layers is {list(layers)}; give rising layer indices from 0 to {self.num_local_layers - 1}"
            )

    @property
    def grid(self) -> int:
        """Patches along a side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def tokens_per_tile(self) -> int:
        """`p`: one class token and the patches."""
        return self.num_patches + 1

    @property
    def num_padding_tokens(self) -> int:
        """Zero rows added to each tile: up to the next multiple of 8, and 8 when it already is one.

        Source: llama-models models/llama3/multimodal/encoder_utils.py, expand_num_tokens_to_mult8.
        """
        return 8 - self.tokens_per_tile % 8

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def feature_dim(self) -> int:
        """`f`: the final output beside one hidden state for each feature layer."""
        return self.width * (1 + len(self.feature_layers))

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """Every (rows, cols) a picture can take; its position + 1 is the canvas id of the position tables."""
        return supported_canvases(self.max_tiles)

    @classmethod
    def llama_3_2(cls, *, tile_size: int) -> "VisionConfig":
        """The encoder of the published checkpoints: tiles of 560 pixels (Instruct) or 448 (base)."""
        return cls(
            tile_size=tile_size,
            max_tiles=4,
            patch_size=14,
            width=1280,
            num_heads=16,
            mlp_dim=5120,
            num_local_layers=32,
            num_global_layers=8,
            feature_layers=(3, 7, 15, 23, 30),
        )

    @classmethod
    def tiny(cls) -> "VisionConfig":
        """Small enough for tests, with everything that can go wrong in it."""
        return cls(
            tile_size=28,
            max_tiles=4,
            patch_size=7,
            width=32,
            num_heads=2,
            mlp_dim=48,
            num_local_layers=3,
            num_global_layers=2,
            feature_layers=(0, 2),
        )
