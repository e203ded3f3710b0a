"""How large a model is, from its config alone: parameters, bytes in each precision, keys and values."""

from dataclasses import dataclass

import torch

from vlm import quantization
from vlm.checkpoint import empty_model
from vlm.config import ModelConfig

PRECISIONS = ("float32", "bfloat16", *quantization.PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The sizes of one model."""

    config: ModelConfig
    num_parameters: int
    """Tied weights count once."""
    parts: dict[str, int]
    """Parameters of the encoder, the projector and the decoder."""
    num_quantized: int
    """Weights in the layers that quantisation makes smaller."""
    quantized_bytes: dict[str, int]
    """What these layers take in each precision of quantisation."""

    @classmethod
    def of(cls, config: ModelConfig) -> "ModelSizes":
        """Return the sizes of a model, built without memory for its weights."""
        model, quantized = empty_model(config), empty_model(quantization.quantized_config(config))
        schemes = {precision: quantization.plan(quantized, precision) for precision in quantization.PRECISIONS}
        layers = {name: quantized.get_submodule(name) for name in schemes["int8"]}
        return cls(
            config=config,
            num_parameters=_count(model),
            parts={name: _count(part) for name, part in model.named_children()},
            num_quantized=sum(layer.weight.numel() for layer in layers.values()) - (_count(quantized) - _count(model)),
            quantized_bytes={
                precision: sum(scheme.num_bytes(*layers[name].weight.shape) for name, scheme in chosen.items())
                for precision, chosen in schemes.items()
            },
        )

    def weight_bytes(self, precision: str) -> int:
        """Return the bytes of the weights in memory; what is not quantised is bfloat16 in int8 and int4."""
        if precision in ("float32", "bfloat16"):
            return self.num_parameters * (4 if precision == "float32" else 2)
        return 2 * (self.num_parameters - self.num_quantized) + self.quantized_bytes[precision]

    def token_bytes(self, precision: str = "bfloat16") -> int:
        """Return the bytes of the keys and values of one token in the self-attention cache."""
        return self.config.decoder.num_layers * self._key_value_bytes(precision)

    def tile_bytes(self, precision: str = "bfloat16") -> int:
        """Return the bytes of the keys and values of one tile of an image; 0 in a text-only model."""
        if self.config.vision is None:
            return 0
        layers, tokens = len(self.config.adapter.cross_layers), self.config.vision.tokens_per_tile
        return layers * tokens * self._key_value_bytes(precision)

    def needed_bytes(self, precision: str, num_tokens: int) -> int:
        """Return the bytes of the weights, of `num_tokens` in the context and of one image of all its tiles."""
        tiles = self.config.vision.max_tiles if self.config.vision else 0
        return (
            self.weight_bytes(precision) + num_tokens * self.token_bytes(precision) + tiles * self.tile_bytes(precision)
        )

    def disk_bytes(self, precision: str) -> int:
        """Return the bytes of the weights that may stay in their files; see `low_memory` of `load_model`."""
        decoder = self.config.decoder
        is_head = decoder.tied and precision not in quantization.PRECISIONS
        embedding = 0 if is_head else decoder.num_embeddings * decoder.width
        count = embedding + sum(self.parts.get(name, 0) for name in ("encoder", "projector"))
        return count * (4 if precision == "float32" else 2)

    def _key_value_bytes(self, precision: str) -> int:
        """Return the bytes of a key and a value of one layer."""
        decoder = self.config.decoder
        return 2 * decoder.num_kv_heads * decoder.head_dim * (4 if precision == "float32" else 2)


def describe(config: ModelConfig) -> dict[str, str]:
    """Return what a model is made of, a line a part."""
    decoder, vision = config.decoder, config.vision
    layers = f"{decoder.num_layers} self-attention"
    if config.adapter is not None:
        layers += f" + {len(config.adapter.cross_layers)} cross-attention"
    lines = {
        "decoder": f"width {decoder.width:,}, {layers} layers, {decoder.num_heads} query and {decoder.num_kv_heads} "
        f"key/value heads of {decoder.head_dim}, feed-forward {decoder.mlp_dim:,}, vocabulary {decoder.vocab_size:,}"
        + (", tied" if decoder.tied else ""),
        "context": f"{decoder.max_context:,} tokens",
    }
    if vision is None:
        return {"kind": "text only"} | lines
    lines["vision"] = (
        f"at most {vision.max_tiles} tiles of {vision.tile_size} pixels, {vision.tokens_per_tile:,} tokens a tile, "
        f"width {vision.width:,}, {vision.num_local_layers} + {vision.num_global_layers} layers, "
        f"features {vision.feature_dim:,}"
    )
    if config.num_views > 1 or config.is_thinned:
        lines["pictures"] = f"looked at in up to {config.num_views} views, whose mean decides"
        lines["pictures"] += "; one blank patch stands for many" if config.is_thinned else ""
    return {"kind": "vision and text"} | lines


def describe_reference(config: ModelConfig) -> str:
    """Say whose forward pass is computed."""
    if config.vision is None:
        return "meta and transformers agree on text-only models"
    if config.reference == "meta":
        return "meta (vision features are taken before their layers; text before the first image sees none)"
    return "transformers (as stock transformers since about 4.56: features after their layers, #39379)"


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
