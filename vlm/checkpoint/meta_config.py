"""params.json of Meta's folders, read into a `ModelConfig` and written from one.

What params.json has no word for stands under one extra key, `sightline`; absent, the published constants hold.
Source: llama-models models/llama3/args.py, ModelArgs, and multimodal/model.py, which holds the constants.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import torch

from adapters.config import AdapterConfig
from vision_encoder.config import VisionConfig
from vlm.checkpoint.files import invalid, read_json
from vlm.config import DecoderConfig, ModelConfig, RopeScaling

CONFIG = "params.json"

# Widths of the text models whose heads are tied and whose RoPE factor is 32 (Llama 3.2 1B and 3B).
_SMALL_WIDTHS = (2048, 3072)
# The published (ffn_dim_multiplier, multiple_of) by width; others are written so that the formula gives mlp_dim.
_PUBLISHED_MLP = {2048: (1.5, 256), 3072: (1.0, 256), 4096: (1.3, 1024), 8192: (1.3, 4096)}
_NEEDED = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "norm_eps", "rope_theta")
_NEEDED_VISION = ("vision_max_num_chunks", "vision_num_cross_attention_layers")
_REFUSED = ("quantization_args", "lora_args")
_OWN = ("max_context", "tied", "num_extra_embeddings", "rope_scaling", "cross_layers", "vision")
_OWN_VISION = tuple(
    field.name for field in fields(VisionConfig) if field.name not in ("tile_size", "max_tiles", "feature_point")
)
_MAX_LAYERS = 1024
_MAX_SIZE = 1 << 24


def read_config(folder: Path) -> ModelConfig:
    """Return the config of a folder with a params.json."""
    params = read_json(folder, CONFIG)
    try:
        own = params.get("sightline", {})
        _check_known(own, _OWN, "sightline")
        has_vision = "vision_chunk_size" in params and params["vision_chunk_size"] != -1
        for name in _NEEDED + (_NEEDED_VISION if has_vision else ()):
            if name not in params:
                raise ValueError(f"{name} is missing; give the params.json that came with the weights")
        for name in _REFUSED:
            if params.get(name) is not None:
                raise ValueError(f"{name} is set; give the plain weights in bfloat16")
        decoder = _decoder(params, own, has_vision)
        if not has_vision:
            return ModelConfig(decoder=decoder)
        return ModelConfig(decoder=decoder, adapter=_adapter(params, own), vision=_vision(params, own))
    except ValueError as error:
        raise invalid(f"{CONFIG}: {error}") from None


def read_dtype(folder: Path) -> torch.dtype | None:
    """Return None: params.json names no dtype."""
    return None


def write_config(config: ModelConfig, dtype: torch.dtype) -> dict:
    """Return the params.json of a model."""
    decoder, vision = config.decoder, config.vision
    multiplier, multiple_of = _mlp_rule(decoder.width, decoder.mlp_dim)
    params = {
        "dim": decoder.width,
        "n_layers": decoder.num_layers,
        "n_heads": decoder.num_heads,
        "n_kv_heads": decoder.num_kv_heads,
        "vocab_size": decoder.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        "norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "use_scaled_rope": decoder.rope_scaling is not None,
    }
    own = {
        "max_context": decoder.max_context,
        "tied": decoder.tied,
        "num_extra_embeddings": decoder.num_extra_embeddings,
        "rope_scaling": asdict(decoder.rope_scaling) if decoder.rope_scaling else None,
    }
    if vision is not None:
        params["vision_chunk_size"] = vision.tile_size
        params["vision_max_num_chunks"] = vision.max_tiles
        params["vision_num_cross_attention_layers"] = len(config.adapter.cross_layers)
        own["cross_layers"] = list(config.adapter.cross_layers)
        own["vision"] = {name: getattr(vision, name) for name in _OWN_VISION}
    return params | {"sightline": own}


def _decoder(params: dict, own: dict, has_vision: bool) -> DecoderConfig:
    width = _size(params, "dim")
    small = not has_vision and width in _SMALL_WIDTHS
    scaled = params.get("use_scaled_rope", False)
    scaling = RopeScaling(factor=32.0 if small else 8.0) if scaled else None
    if "rope_scaling" in own:
        scaling = _rope_scaling(own["rope_scaling"])
    return DecoderConfig(
        width=width,
        num_layers=_size(params, "n_layers", _MAX_LAYERS),
        num_heads=_size(params, "n_heads"),
        num_kv_heads=_size(params, "n_kv_heads"),
        mlp_dim=_mlp_dim(width, params.get("ffn_dim_multiplier"), _size(params, "multiple_of")),
        vocab_size=_size(params, "vocab_size"),
        num_extra_embeddings=_size(own, "num_extra_embeddings", default=8 if has_vision else 0),
        tied=bool(own.get("tied", small)),
        rope_theta=_number(params, "rope_theta"),
        rope_scaling=scaling,
        max_context=_size(own, "max_context", 1 << 32, default=131072 if scaled else 8192),
        norm_eps=_number(params, "norm_eps"),
    )


def _rope_scaling(own: object) -> RopeScaling | None:
    if own is None:
        return None
    names = [field.name for field in fields(RopeScaling)]
    _check_known(own, names, "sightline.rope_scaling")
    return RopeScaling(**{name: (_size if name == "original_context" else _number)(own, name) for name in names})


def _adapter(params: dict, own: dict) -> AdapterConfig:
    """Read where the cross-attention layers stand; without a word of ours, where Meta's code puts them.

    Source: CrossAttentionTransformerText._init_fusion_schedule, which names self-attention layers; a cross-attention
    layer stands before each of them.
    """
    num_layers, num_cross = _size(params, "n_layers"), _size(params, "vision_num_cross_attention_layers")
    if "cross_layers" in own:
        cross_layers = _sizes(own, "cross_layers")
        if len(cross_layers) != num_cross:
            raise ValueError(
                f"sightline has {len(cross_layers)} cross_layers; vision_num_cross_attention_layers is {num_cross}"
            )
        return AdapterConfig(cross_layers=cross_layers)
    if not 1 <= num_cross <= num_layers:
        raise ValueError(f"vision_num_cross_attention_layers is {num_cross}; expected 1 to {num_layers}")
    step = math.ceil(num_layers / num_cross)
    schedule = list(range(num_layers))[::-1][::step][:num_cross][::-1]
    return AdapterConfig(cross_layers=tuple(place + earlier for earlier, place in enumerate(schedule)))


def _vision(params: dict, own: dict) -> VisionConfig:
    vision = own.get("vision", {})
    _check_known(vision, _OWN_VISION, "sightline.vision")
    tile_size = _size(params, "vision_chunk_size")
    constants = asdict(VisionConfig.llama_3_2(tile_size=560))
    read = {"feature_layers": _sizes, "norm_eps": _number}
    given = {name: read.get(name, _size)(vision, name) for name in vision}
    return VisionConfig(
        **{**constants, **given, "tile_size": tile_size, "max_tiles": _size(params, "vision_max_num_chunks", 64)}
    )


def _mlp_dim(width: int, multiplier: float | None, multiple_of: int) -> int:
    """Return Meta's width of the feed-forward. Source: llama-models models/llama3/model.py, FeedForward."""
    if multiplier is not None and (type(multiplier) not in (int, float) or not 0 < multiplier < 1e6):
        raise ValueError(f"ffn_dim_multiplier is {multiplier!r:.40}; expected a number above 0")
    if multiple_of < 1:
        raise ValueError(f"multiple_of is {multiple_of}; it must be at least 1")
    hidden = int(2 * (4 * width) / 3)
    hidden = hidden if multiplier is None else int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def _mlp_rule(width: int, mlp_dim: int) -> tuple[float, int]:
    """Return the (ffn_dim_multiplier, multiple_of) that give `mlp_dim`."""
    published = _PUBLISHED_MLP.get(width)
    if published and _mlp_dim(width, *published) == mlp_dim:
        return published
    return 1 / (2 * width), mlp_dim  # a hidden width of 1, rounded up to one multiple


def _check_known(found: object, known: Iterable[str], where: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is a {type(found).__name__}; expected an object")
    for name in found:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0)[0]
            raise ValueError(f"{where} has the unknown key {name!r:.60}; did you mean {nearest}?")


def _size(found: dict, name: str, most: int = _MAX_SIZE, *, default: int | None = None) -> int:
    value = found.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}; expected a whole number up to {most:,}")
    return value


def _sizes(found: dict, name: str) -> tuple[int, ...]:
    values = found[name]
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value <= _MAX_LAYERS for value in values):
        raise ValueError(f"{name} is {values!r:.40}; expected a list of whole numbers")
    return tuple(values)


def _number(found: dict, name: str) -> float:
    value = found.get(name)
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value < 1e12:
        raise ValueError(f"{name} is {value!r:.40}; expected a number above 0")
    return float(value)
