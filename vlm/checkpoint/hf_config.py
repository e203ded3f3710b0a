"""config.json of Hugging Face folders, read into a `ModelConfig` and written from one.

What a file leaves out has transformers' default; what would change the computation and is unknown here is refused.
Source: transformers models/mllama/configuration_mllama.py and models/llama/configuration_llama.py.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from adapters.config import AdapterConfig
from vision_encoder.config import VisionConfig
from vision_encoder.tiling import supported_canvases
from vlm.checkpoint import quantization_config
from vlm.checkpoint.files import invalid, read_json
from vlm.checkpoint.hf_values import MAX_SIZE, check_fixed, flag, number, section, size, sizes
from vlm.config import DecoderConfig, ModelConfig, RopeScaling
from vlm.tokenizer import Tokenizer
from vlm.tokenizer_files.llama3 import PADDING

CONFIG = "config.json"

# ours: theirs, default of `mllama`, default of `llama` (None: another field's value)
_DECODER = {
    "width": ("hidden_size", 4096, 4096),
    "num_layers": ("num_hidden_layers", 40, 32),
    "num_heads": ("num_attention_heads", 32, 32),
    "num_kv_heads": ("num_key_value_heads", 8, None),
    "mlp_dim": ("intermediate_size", 14336, 11008),
    "vocab_size": ("vocab_size", 128256, 32000),
    "max_context": ("max_position_embeddings", 131072, 2048),
    "norm_eps": ("rms_norm_eps", 1e-5, 1e-6),
}
_VISION = {
    "tile_size": ("image_size", 448),
    "max_tiles": ("max_num_tiles", 4),
    "patch_size": ("patch_size", 14),
    "width": ("hidden_size", 1280),
    "num_heads": ("attention_heads", 16),
    "mlp_dim": ("intermediate_size", 5120),
    "num_local_layers": ("num_hidden_layers", 32),
    "num_global_layers": ("num_global_layers", 8),
    "feature_layers": ("intermediate_layers_indices", (3, 7, 15, 23, 30)),
}
# What this project alone knows, left out where it is as in every other checkpoint; transformers reads past it.
_VIEWS, _THINNED = "num_views", "thin_blank_patches"
_CROSS = "cross_attention_layers"
_THETA = (None, 500000.0, 10000.0)
_CROSS_LAYERS = (3, 8, 13, 18, 23, 28, 33, 38)
# rope scaling: ours, theirs
_ROPE = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}
# Settings that change the computation, with the values this code computes; left out is fine.
_TEXT_FIXED = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1,),
    "sliding_window": (None,),
}
_VISION_FIXED = {"hidden_act": ("gelu",), "num_channels": (3,), "norm_eps": (1e-5,), "quantization_config": (None,)}
# Far beyond any model of this family; keeps a hostile file from building a million layers.
_MAX = {
    "num_layers": 1024,
    "num_local_layers": 1024,
    "num_global_layers": 1024,
    "max_tiles": 64,
    "max_context": 1 << 32,
}
_DTYPES = ("float32", "float16", "bfloat16")


def read_config(folder: Path) -> ModelConfig:
    """Return the config of a folder with a config.json of `mllama` or `llama`."""
    found = read_json(folder, CONFIG)
    try:
        quantization_config.quantization_of(found)
        return parse_config(found)
    except ValueError as error:
        raise invalid(f"{CONFIG}: {error}") from None


def parse_config(found: dict) -> ModelConfig:
    """Return the config that the settings of a config.json give. Raises ValueError that says what is wrong."""
    kind = found.get("model_type")
    if kind == "mllama":
        return _read_mllama(found)
    if kind == "llama":
        decoder = _decoder(found, "it", 2, num_cross=0, tied=flag(found, "tie_word_embeddings"))
        return ModelConfig(decoder=decoder)
    raise ValueError(f'it has model_type {kind!r:.60}; expected "mllama" (Llama 3.2 Vision) or "llama" (text only)')


def read_dtype(folder: Path) -> torch.dtype | None:
    """Return the dtype that config.json names, if it names one."""
    found = read_json(folder, CONFIG)
    texts = [found, found["text_config"]] if isinstance(found.get("text_config"), dict) else [found]
    for name in (text.get(key) for text in texts for key in ("torch_dtype", "dtype")):
        if name is not None:
            if name not in _DTYPES:
                raise invalid(f"{CONFIG} has torch_dtype {name!r:.40}; expected {', '.join(_DTYPES)}")
            return getattr(torch, name)
    return None


def quantization(folder: Path) -> quantization_config.Quantization | None:
    """Return how config.json says the weights are quantised; None where they are not."""
    try:
        return quantization_config.quantization_of(read_json(folder, CONFIG))
    except ValueError as error:
        raise invalid(f"{CONFIG}: {error}") from None


def write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None = None) -> dict:
    """Return the config.json that transformers' old and new versions read; see `token_ids` for `tokenizer`."""
    named = {"torch_dtype": str(dtype).removeprefix("torch.")}
    decoder, vision = config.decoder, config.vision
    text = {theirs: getattr(decoder, ours) for ours, (theirs, *_) in _DECODER.items()}
    text |= {
        "num_hidden_layers": config.num_layers,
        "hidden_act": "silu",
        "rope_theta": decoder.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": decoder.tied,
        **token_ids(decoder.vocab_size, tokenizer),
    }
    if decoder.rope_scaling is not None:
        scaling = {theirs: getattr(decoder.rope_scaling, ours) for ours, theirs in _ROPE.items()}
        text["rope_scaling"] = {"rope_type": "llama3", **scaling}
    if vision is None:
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **text, **named}
    text |= {"model_type": "mllama_text_model", _CROSS: list(config.adapter.cross_layers)}
    tower = {theirs: getattr(vision, ours) for ours, (theirs, _) in _VISION.items()}
    tower |= {
        "model_type": "mllama_vision_model",
        "hidden_act": "gelu",
        "num_channels": 3,
        "norm_eps": vision.norm_eps,
        "intermediate_layers_indices": list(vision.feature_layers),
        "vision_output_dim": vision.feature_dim,
        "supported_aspect_ratios": [list(canvas) for canvas in vision.canvases],
    }
    ours = {_VIEWS: config.num_views} if config.num_views > 1 else {}
    ours |= {_THINNED: True} if config.is_thinned else {}
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": decoder.vocab_size,
        "text_config": text | named,
        "vision_config": tower | named,
        **ours,
        **named,
    }


def token_ids(vocab_size: int, tokenizer: Tokenizer | None = None) -> dict:
    """Return the begin, end and padding ids: the tokenizer's, or without one Llama 3's.

    There the vocabulary ends with its 256 special tokens; words that a model gained stand behind them.
    """
    if tokenizer is not None:
        return {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": list(tokenizer.stop_ids),
            "pad_token_id": tokenizer.special_ids.get(PADDING),
        }
    special = vocab_size - 256
    if special < 0:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {
        "bos_token_id": special,
        "eos_token_id": [special + 1, special + 8, special + 9],
        "pad_token_id": special + 4,
    }


def _read_mllama(found: dict) -> ModelConfig:
    text, tower = (section(found, name) for name in ("text_config", "vision_config"))
    check_fixed(text, {"quantization_config": (None,)}, "text_config")
    check_fixed(tower, _VISION_FIXED, "vision_config")
    cross_layers = sizes(text, _CROSS, _CROSS_LAYERS)
    if flag(text, "tie_word_embeddings"):
        raise ValueError("tie_word_embeddings is true; a model that sees has a head of its own, give such a model")
    decoder = _decoder(text, "text_config", 1, num_cross=len(cross_layers), tied=False)
    fields = {}
    for ours, (theirs, default) in _VISION.items():
        read = sizes if isinstance(default, tuple) else size
        fields[ours] = read(tower, theirs, default, _MAX.get(ours, MAX_SIZE))
    with _naming(_VISION):
        vision = VisionConfig(**fields)
    ratios = tower.get("supported_aspect_ratios")
    if ratios is not None and ratios != [list(canvas) for canvas in supported_canvases(vision.max_tiles)]:
        raise ValueError(f"supported_aspect_ratios is not every canvas of at most {vision.max_tiles} tiles, rows first")
    if tower.get("vision_output_dim", vision.feature_dim) != vision.feature_dim:
        raise ValueError(
            f"vision_output_dim is {tower['vision_output_dim']!r:.40}; the features have {vision.feature_dim}"
        )
    marker = found.get("image_token_index", found.get("image_token_id", decoder.vocab_size))
    if marker != decoder.vocab_size:
        raise ValueError(f"image_token_index is {marker!r:.40}; it must be vocab_size, {decoder.vocab_size}")
    with _naming({"cross_layers": (_CROSS,)}):
        return ModelConfig(
            decoder=decoder,
            adapter=AdapterConfig(cross_layers=cross_layers),
            vision=vision,
            num_views=size(found, _VIEWS, 1),
            is_thinned=flag(found, _THINNED),
        )


def _decoder(text: dict, where: str, column: int, *, num_cross: int, tied: bool) -> DecoderConfig:
    """Read the text settings; `column` says whose defaults hold."""
    check_fixed(text, _TEXT_FIXED, where)
    fields = {}
    for ours, row in _DECODER.items():
        read = number if ours == "norm_eps" else size
        default = fields["num_heads"] if row[column] is None else row[column]
        fields[ours] = read(text, row[0], default, _MAX.get(ours, MAX_SIZE))
    if fields["num_layers"] <= num_cross:
        why = f", for {num_cross} are {_CROSS}" if num_cross else ""
        raise ValueError(f"num_hidden_layers is {fields['num_layers']}; it must be at least {num_cross + 1}{why}")
    fields["num_layers"] -= num_cross
    rope = _rope(text, _THETA[column])
    with _naming(_DECODER):
        decoder = DecoderConfig(**fields, **rope, num_extra_embeddings=8 if column == 1 else 0, tied=tied)
    head_dim = text.get("head_dim")
    if head_dim is not None and head_dim != decoder.head_dim:
        raise ValueError(
            f"head_dim is {head_dim!r:.40}; only hidden_size / num_attention_heads works, {decoder.head_dim}"
        )
    return decoder


def _rope(text: dict, default_theta: float) -> dict:
    """Read either spelling: rope_theta beside rope_scaling, or rope_parameters with both (transformers 5)."""
    scaling = text.get("rope_parameters")
    if scaling is None:
        scaling = text.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, dict):
        raise ValueError(f"the RoPE settings are {scaling!r:.60}; expected an object")
    scaling = dict(scaling or {})
    theta = number({**text, **scaling}, "rope_theta", default_theta)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind != "llama3":
        raise ValueError(f'rope_type is {kind!r:.40}; expected "llama3" or "default"')
    check_fixed(scaling, {"partial_rotary_factor": (1,)}, "rope_scaling")
    fields = {ours: number(scaling, theirs, None) for ours, theirs in _ROPE.items()}
    fields["original_context"] = int(fields["original_context"])
    with _naming(_ROPE):
        return {"rope_theta": theta, "rope_scaling": RopeScaling(**fields)}


@contextmanager
def _naming(table: Mapping[str, str | tuple]) -> Iterator[None]:
    """Have the errors of our configs name the file's keys; `table` gives them by our names, or first in a tuple.

    A name stands before its value, as in "width 32 must split into heads of even width".
    """
    try:
        yield
    except ValueError as error:
        ours = rf"\b({'|'.join(table)})(?= (?:is |ends at )?[-\[\d])"
        theirs = {name: row if isinstance(row, str) else row[0] for name, row in table.items()}
        raise ValueError(re.sub(ours, lambda found: theirs[found[1]], str(error))) from None
