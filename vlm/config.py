"""The numbers of the decoder and of whole models, and the presets named after published checkpoints."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from adapters.config import AdapterConfig
from vision_encoder.config import VisionConfig
from vlm.errors import VLMError, shown

MAX_VIEWS = 8
"""Ten read no more of small charts than eight, and an answer in eight may take more than a second."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary frequencies."""

    factor: float
    """How much the slowest frequencies are slowed."""
    low_frequency_factor: float = 1.0
    """Wavelengths beyond the original context divided by this are slowed whole."""
    high_frequency_factor: float = 4.0
    """Wavelengths below the original context divided by this are left alone."""
    original_context: int = 8192
    """The context the frequencies were first trained for."""

    def __post_init__(self):
        for name in ("factor", "low_frequency_factor", "high_frequency_factor", "original_context"):
            _check_above_zero(name, getattr(self, name))
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor is {self.low_frequency_factor}; it must be below high_frequency_factor "
                f"{self.high_frequency_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """One text decoder, without what opens it to images."""

    width: int
    """Width `d` of a token."""
    num_layers: int
    """Self-attention layers."""
    num_heads: int
    """Query heads `h`."""
    num_kv_heads: int
    """Key/value heads `g`; each serves h / g query heads."""
    mlp_dim: int
    """Hidden width of the SwiGLU feed-forward."""
    vocab_size: int
    """Rows `n` of the output head."""
    num_extra_embeddings: int = 0
    """Embedding rows past the vocabulary, the first of them the image marker's: 8 in the vision models."""
    tied: bool = False
    """Whether the output head is the embedding."""
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    max_context: int = 131072
    """Most positions, prompt and reply together."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""

    def __post_init__(self):
        for name in ("width", "num_layers", "num_heads", "num_kv_heads", "mlp_dim", "vocab_size", "max_context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("rope_theta", "norm_eps"):
            _check_above_zero(name, getattr(self, name))
        if self.num_extra_embeddings < 0:
            raise ValueError(f"num_extra_embeddings is {self.num_extra_embeddings}; it must not be negative")
        if self.width % self.num_heads or self.head_dim % 2:
            raise ValueError(f"width {self.width} must split into num_heads {self.num_heads} heads of even width")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        if self.tied and self.num_extra_embeddings:
            raise ValueError("a tied head has as many rows as the embedding; set tied=False or num_extra_embeddings=0")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def num_embeddings(self) -> int:
        return self.vocab_size + self.num_extra_embeddings


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model; `vision` and `adapter` are both None in the text-only family."""

    decoder: DecoderConfig
    adapter: AdapterConfig | None = None
    vision: VisionConfig | None = None
    num_views: int = 1
    """In how many views a picture is looked at, at most (see `vlm/images/views.py`); with Meta's reference alone."""
    is_thinned: bool = False
    """Whether the encoder goes through few of the blank patches (see `vision_encoder/thinning.py`); likewise."""

    def __post_init__(self):
        if (self.vision is None) != (self.adapter is None):
            raise ValueError("vision and adapter go together; give both or neither")
        if self.adapter is not None and self.adapter.cross_layers[-1] >= self.num_layers:
            raise ValueError(f"cross_layers ends at {self.adapter.cross_layers[-1]}, past the {self.num_layers} layers")
        if not 1 <= self.num_views <= MAX_VIEWS:
            raise ValueError(f"num_views is {self.num_views}; it must be from 1 to {MAX_VIEWS}")

    @property
    def num_layers(self) -> int:
        """All layers of the stack, self- and cross-attention."""
        return self.decoder.num_layers + (len(self.adapter.cross_layers) if self.adapter else 0)

    @property
    def reference(self) -> Literal["meta", "transformers"]:
        """Whose forward pass is computed (see `with_reference`)."""
        return "transformers" if self.adapter is not None and self.adapter.leak_attention else "meta"

    def with_reference(self, reference: Literal["meta", "transformers"]) -> "ModelConfig":
        """Return this config for Meta's forward pass, or for that of stock transformers since about 4.56."""
        if reference not in ("meta", "transformers"):
            raise VLMError("invalid_request", f'reference is {shown(reference)}; give "meta" or "transformers"')
        if self.vision is None:
            return self
        stock = reference == "transformers"
        return replace(
            self,
            adapter=replace(self.adapter, leak_attention=stock),
            vision=replace(self.vision, feature_point="after" if stock else "before"),
        )

    def exact(self) -> "ModelConfig":
        """Return this config without what no reference computes: one view of each picture, and all of its patches."""
        return replace(self, num_views=1, is_thinned=False)


def _check_above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a number above 0")


def _text(factor: float, **sizes) -> DecoderConfig:
    return DecoderConfig(vocab_size=128256, rope_scaling=RopeScaling(factor=factor), **sizes)


def _vision(decoder: DecoderConfig, num_cross_layers: int, tile_size: int) -> ModelConfig:
    return ModelConfig(
        decoder=replace(decoder, num_extra_embeddings=8),
        # One before every fourth self-attention layer, from the fourth on.
        adapter=AdapterConfig(cross_layers=tuple(range(3, 5 * num_cross_layers, 5))),
        vision=VisionConfig.llama_3_2(tile_size=tile_size),
    )


def _llama_8b() -> DecoderConfig:
    return _text(8.0, width=4096, num_layers=32, num_heads=32, num_kv_heads=8, mlp_dim=14336)


def _llama_70b() -> DecoderConfig:
    return _text(8.0, width=8192, num_layers=80, num_heads=64, num_kv_heads=8, mlp_dim=28672)


def _llama_1b() -> ModelConfig:
    sizes = {"width": 2048, "num_layers": 16, "num_heads": 32, "num_kv_heads": 8, "mlp_dim": 8192}
    return ModelConfig(decoder=_text(32.0, tied=True, **sizes))


def _llama_3b() -> ModelConfig:
    sizes = {"width": 3072, "num_layers": 28, "num_heads": 24, "num_kv_heads": 8, "mlp_dim": 8192}
    return ModelConfig(decoder=_text(32.0, tied=True, **sizes))


def _tiny() -> ModelConfig:
    decoder = DecoderConfig(
        width=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        mlp_dim=48,
        vocab_size=512,
        num_extra_embeddings=8,
        rope_scaling=RopeScaling(factor=8.0, original_context=64),
        max_context=512,
    )
    return ModelConfig(decoder=decoder, adapter=AdapterConfig(cross_layers=(1, 3)), vision=VisionConfig.tiny())


def _default() -> ModelConfig:
    """What `make train-default` trains: charts; bytes and a few words as tokens (`vlm.training.reader.vocabulary`)."""
    decoder = DecoderConfig(
        width=192,
        num_layers=6,
        num_heads=4,
        num_kv_heads=2,
        mlp_dim=512,
        vocab_size=764,
        num_extra_embeddings=8,
        max_context=2048,
    )
    vision = VisionConfig(
        tile_size=368,
        max_tiles=4,
        patch_size=8,
        width=144,
        num_heads=3,
        mlp_dim=864,
        num_local_layers=4,
        num_global_layers=2,
        feature_layers=(1, 3),
    )
    adapter = AdapterConfig(cross_layers=(2, 4, 7))
    return ModelConfig(decoder=decoder, adapter=adapter, vision=vision, num_views=7, is_thinned=True)


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "11b-vision": lambda: _vision(_llama_8b(), 8, 560),
    "11b-vision-base": lambda: _vision(_llama_8b(), 8, 448),
    "90b-vision": lambda: _vision(_llama_70b(), 20, 560),
    "90b-vision-base": lambda: _vision(_llama_70b(), 20, 448),
    "1b": _llama_1b,
    "3b": _llama_3b,
    "8b": lambda: ModelConfig(decoder=_llama_8b()),
    "70b": lambda: ModelConfig(decoder=_llama_70b()),
    "default": _default,
    "tiny": _tiny,
}


def preset(name: str) -> ModelConfig:
    """Return the config of a published checkpoint, of the reader in training ("default") or of the tests ("tiny")."""
    if not isinstance(name, str) or name not in PRESETS:
        raise VLMError("invalid_request", f"no preset is named {shown(name)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
