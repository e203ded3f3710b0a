"""Folders of GGUF files as Ollama stores `mllama`, and of text-only `llama`: read as if they were Hugging Face's.

Until Ollama 0.7 the vision tower is a file of its own, the projector, with names of its own; since then all is in one
file. In both the tanh of the vision tower's gates is stored, and the rows of all queries and keys stand as Meta's
rotation wants them, those of layers that do not rotate too.
Source: ollama convert/convert_mllama.go, convert/convert_llama.go; llama/mllama.cpp of Ollama 0.5 for the projector.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from vlm.checkpoint import hf, hf_config
from vlm.checkpoint.files import invalid
from vlm.checkpoint.gguf_file import open_gguf
from vlm.checkpoint.quantization_config import Quantization
from vlm.checkpoint.stored import ComputedTensor, QuantizedTensor, StoredTensor
from vlm.config import ModelConfig, RopeScaling
from vlm.rope import frequencies

SUFFIX = ".gguf"
_METHOD = "GGUF"
keys = hf.keys

# theirs in config.json, theirs in a GGUF file, after the architecture's name
_TEXT = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_VISION = {
    "image_size": "vision.image_size",
    "max_num_tiles": "vision.max_num_tiles",
    "patch_size": "vision.patch_size",
    "num_channels": "vision.num_channels",
    "hidden_size": "vision.embedding_length",
    "attention_heads": "vision.attention.head_count",
    "intermediate_size": "vision.feed_forward_length",
    "num_hidden_layers": "vision.block_count",
    "num_global_layers": "vision.global.block_count",
    "intermediate_layers_indices": "vision.intermediate_layers_indices",
    "norm_eps": "vision.attention.layer_norm_epsilon",
}
_CROSS_LAYERS = "attention.cross_attention_layers"
_ROPE = "rope_freqs.weight"
# What makes of the published names those of a GGUF file, in this order.
_TEXT_NAMES = (
    ("language_model.", ""),
    ("lm_head", "output"),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.layers", "blk"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("cross_attn.", "cross_attn_"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
)
_PROJECTOR_NAMES = (
    ("input_layernorm", "ln1"),
    ("post_attention_layernorm", "ln2"),
    ("self_attn.o_proj", "attn_out"),
    ("mlp.fc1", "ffn_down"),
    ("mlp.fc2", "ffn_up"),
)
_VISION_NAMES = (
    ("vision_model.", "v."),
    ("multi_modal_projector", "mm.0"),
    ("global_transformer.layers", "global.blk"),
    ("transformer.layers", "blk"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
    ("gate_attn", "attn_gate"),
    ("gate_ffn", "ffn_gate"),
    ("class_embedding", "class_embd"),
    ("patch_embedding", "patch_embd"),
    ("gated_positional_embedding.tile_embedding", "tile_position_embd"),
    ("gated_positional_embedding.embedding", "position_embd.weight"),
    ("gated_positional_embedding", "tile_position_embd"),
    ("tile_positional_embedding.embedding", "tile_position_embd"),
    ("tile_positional_embedding", "tile_position_embd"),
    ("layernorm_pre", "pre_ln"),
    ("layernorm_post", "post_ln"),
    *_TEXT_NAMES,
)
# 1 less the tanh of the gate that both position embeddings share; it stands under the other's name too.
_OTHER_GATE, _GATE = "v.position_embd.gate", "v.tile_position_embd.gate"


def read_config(folder: Path) -> ModelConfig:
    """Return the config of a folder of GGUF files."""
    with ExitStack() as opened:
        kind, settings, tensors = _open(folder, opened)
        try:
            text = _section(settings, _TEXT)
            embedding = tensors.get("token_embd.weight")
            rows = embedding.shape[0] if embedding is not None else 0
            extra = 8 if kind == "mllama" else 0
            text |= {"vocab_size": rows - extra, "tie_word_embeddings": "output.weight" not in tensors}
            if kind == "llama":
                found = {"model_type": kind, **text}
            else:
                text["cross_attention_layers"] = settings.get(_CROSS_LAYERS)
                found = {"model_type": kind, "text_config": text, "vision_config": _section(settings, _VISION)}
            return _with_rope(hf_config.parse_config(found), tensors.get(_ROPE))
        except ValueError as error:
            raise invalid(f"{folder.name}: {error}") from None


def read_dtype(folder: Path) -> torch.dtype:
    """Return what the published weights were stored in before they became GGUF."""
    return torch.bfloat16


def quantization(folder: Path) -> Quantization | None:
    """Return how the decoder's weights are quantised; None where they are plain floats."""
    with ExitStack() as opened:
        _, _, tensors = _open(folder, opened)
        text = [tensor for name, tensor in tensors.items() if not name.startswith(("v.", "mm."))]
        kinds = {tensor.kind for tensor in text if isinstance(tensor, QuantizedTensor) and len(tensor.shape) == 2}
    return Quantization(_METHOD, f"{' and '.join(sorted(kinds))} ({_METHOD})") if kinds else None


def read_settings(folder: Path) -> dict:
    """Return every setting of the GGUF files of `folder`, without the architecture's name before it."""
    with ExitStack() as opened:
        return _open(folder, opened)[1]


def open_tensors(folder: Path, config: ModelConfig, opened: ExitStack) -> dict[str, StoredTensor]:
    """Return the tensors of `folder` by the names and in the arrangement of Hugging Face's folders."""
    _, _, tensors = _open(folder, opened)
    tensors.pop(_ROPE, None)
    if (other := tensors.pop(_OTHER_GATE, None)) is not None and _GATE in tensors:
        both = other.load().float() + tensors[_GATE].load().float()
        if not torch.allclose(both, torch.ones(1), atol=1e-3):
            raise invalid(f"{folder.name}: {_GATE} and {_OTHER_GATE} are not a tanh and 1 less it, as Ollama has them")
    vision_names = _PROJECTOR_NAMES + _VISION_NAMES if "v.blk.0.ln1.weight" in tensors else _VISION_NAMES
    renamed = {}
    for key in keys(config):
        is_text = key.ours.startswith("decoder.")
        theirs = _renamed(key.theirs, _TEXT_NAMES if is_text else vision_names)
        if (found := tensors.pop(theirs, None)) is not None:
            renamed[key.theirs] = _arranged(found, key.ours, config)
    return renamed | tensors


def _arranged(found: StoredTensor, ours: str, config: ModelConfig) -> StoredTensor:
    """Return a tensor as Hugging Face's folders hold it."""
    if ours.startswith("encoder.") and ours.endswith("gate"):
        return ComputedTensor(found.shape, torch.float32, lambda: found.load().float().atanh())
    part = config.decoder if ours.startswith("decoder.") else config.vision
    if ours.endswith("q_proj.weight"):
        return _turned(found, part.num_heads)
    if ours.endswith("k_proj.weight"):
        return _turned(found, getattr(part, "num_kv_heads", part.num_heads))
    return found


class _ComputedBlocks(ComputedTensor, QuantizedTensor):
    """What is computed from blocks of a file."""


def _turned(found: StoredTensor, num_heads: int) -> StoredTensor:
    """Return queries or keys with the rows half a head apart that the file has side by side."""

    def compute() -> Tensor:
        return rearrange(found.load(), "(heads pair half) d -> (heads half pair) d", heads=num_heads, half=2)

    kind = _ComputedBlocks if isinstance(found, QuantizedTensor) else ComputedTensor
    return kind(found.shape, found.dtype, compute)


def _open(folder: Path, opened: ExitStack) -> tuple[str, dict, dict[str, StoredTensor]]:
    """Return the architecture, its settings without its name, and the tensors of all files of `folder`."""
    kinds, settings, tensors = set(), {}, {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        found, stored = open_gguf(folder, path.name, opened)
        kinds.add(str(found.get("general.architecture")))
        if twice := set(stored) & set(tensors):
            raise invalid(
                f"{folder.name} holds {min(twice):.60} in two GGUF files; keep one model, or join the parts of a "
                "divided file with llama-gguf-split --merge"
            )
        settings |= found
        tensors |= stored
    if kinds not in ({"mllama"}, {"llama"}):
        raise invalid(
            f"{folder.name} holds GGUF files of architecture {', '.join(sorted(kinds)):.60}; expected mllama (Llama "
            '3.2 Vision as Ollama stores it) or llama (text only): give the original weights with quantize="int4"'
        )
    kind = kinds.pop()
    settings = {name.removeprefix(f"{kind}."): value for name, value in settings.items()}
    if kind == "mllama" and (not any(name in settings for name in _VISION.values()) or _CROSS_LAYERS not in settings):
        raise invalid(
            f"{folder.name} holds half a model; put the GGUF files of the text and of the projector there, which "
            "`ollama show --modelfile` names"
        )
    return kind, settings, tensors


def _section(settings: dict, names: dict[str, str]) -> dict:
    """Return the settings of a config.json that GGUF has under other names."""
    missing = [theirs for theirs in names.values() if theirs not in settings]
    if missing:
        raise ValueError(f"its GGUF files lack the settings {', '.join(missing)}; download them again")
    # Seven digits: what a float of 32 bits was before it was one.
    return {
        ours: float(f"{value:.7g}") if isinstance(value := settings[theirs], float) else value
        for ours, theirs in names.items()
    }


def _with_rope(plain: ModelConfig, factors: StoredTensor | None) -> ModelConfig:
    """Return the config with the scaling of the rotary frequencies that the file has worked out for each of them."""
    if factors is None:
        return plain
    factors = factors.load().float()
    scaling = RopeScaling(factor=round(factors.max().item(), 3))
    scaled = replace(plain, decoder=replace(plain.decoder, rope_scaling=scaling))
    before, after = (frequencies(config.decoder, torch.device("cpu")) for config in (plain, scaled))
    if factors.shape != before.shape or not torch.allclose(before / factors, after, rtol=1e-3):
        raise ValueError(f"{_ROPE} is not Llama 3.1's scaling by {scaling.factor}; give the original weights")
    return scaled


def _renamed(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for old, new in names:
        name = name.replace(old, new)
    return name
