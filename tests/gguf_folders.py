"""Folders of GGUF files as Ollama stores `mllama`, written by the gguf library, and their weights as they are stored.

Names and arrangement follow Ollama's converter (convert/convert_mllama.go, convert_llama.go) and, for the projector,
its loader (llama/mllama.cpp of 0.5); which tensor is quantised how, server/quantization.go. The gguf library cannot
quantise to K blocks, so these are laid out here number by number.
Source: ggml src/ggml-common.h and ggml-quants.c, block_q4_K and block_q6_K.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import torch
from einops import rearrange
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoint_models import text_config
from vlm import Tokenizer, preset
from vlm.checkpoint import save_model
from vlm.config import ModelConfig, RopeScaling
from vlm.model import VisionLanguageModel
from vlm.rope import frequencies

# The converter's table, the first that fits at each place of a name.
_NAMES = {
    "lm_head": "output",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "post_attention_layernorm": "ffn_norm",
    "language_model.": "",
    "gate_attn": "attn_gate",
    "gate_ffn": "ffn_gate",
    "cross_attn.": "cross_attn_",
    "vision_model": "v",
    "class_embedding": "class_embd",
    "patch_embedding": "patch_embd",
    "gated_positional_embedding.tile_embedding": "tile_position_embd",
    "gated_positional_embedding.embedding": "position_embd.weight",
    "gated_positional_embedding": "position_embd",
    "embedding.weight": "weight",
    "pre_tile_positional_embedding": "pre_tile_position_embd",
    "post_tile_positional_embedding": "post_tile_position_embd",
    "layernorm_pre": "pre_ln",
    "layernorm_post": "post_ln",
    "global_transformer.layers": "global.blk",
    "transformer.layers": "blk",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "multi_modal_projector": "mm.0",
}
_TABLE = re.compile("|".join(map(re.escape, _NAMES)))
# Of a layer of the projector, beside what the converter calls it.
_PROJECTOR_NAMES = {
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn_output": "attn_out",
    "ffn_up": "ffn_down",
    "ffn_down": "ffn_up",
}
_FLOAT_TABLES = ("v.tile_position_embd.weight", "v.pre_tile_position_embd.weight", "v.post_tile_position_embd.weight")
_MIXED = "Q4_K_M"


def config(*, vision: bool = True, tied: bool = False) -> ModelConfig:
    """Return a small model whose rows are whole K blocks, with the published scaling of its frequencies."""
    small = preset("tiny") if vision else text_config(tied=tied)
    scaling = RopeScaling(factor=8.0)
    decoder = replace(small.decoder, width=256, mlp_dim=256, num_layers=2, rope_scaling=scaling)
    adapter = replace(small.adapter, cross_layers=(1,)) if vision else None
    return replace(small, decoder=decoder, adapter=adapter)


def write(model: VisionLanguageModel, folder: Path, kind: str, *, projector: bool = False) -> Path:
    """Write GGUF files in one of F16, Q8_0 and Q4_K_M, and return a folder with the weights that they stand for.

    projector: whether the vision tower is in a file of its own, as until Ollama 0.7.
    """
    twin = folder.with_name(f"{folder.name} expanded")
    save_model(model, twin)
    folder.mkdir()
    has_vision = model.config.vision is not None
    names = ["model", "projector"] if projector else ["model"]
    files = {name: gguf.GGUFWriter(folder / f"{name}.gguf", "mllama" if has_vision else "llama") for name in names}
    _add_settings(files["model"], model.config, vision=has_vision and not projector)
    if projector:
        _add_vision_settings(files["projector"], model.config)
    values = {}
    for theirs, tensor in load_file(twin / "model.safetensors").items():
        name = _TABLE.sub(lambda match: _NAMES[match[0]], theirs)
        is_vision = name.startswith(("v.", "mm."))
        arranged, back = _arrange(name, tensor.float(), model.config)
        if projector and is_vision:
            name = ".".join(_PROJECTOR_NAMES.get(part, part) for part in name.split(".")) if ".blk." in name else name
        stored, expanded = _encode(arranged, _kind(name, arranged, kind))
        values[theirs] = back(expanded)
        file = files["projector" if projector and is_vision else "model"]
        for same in [name, "v.tile_position_embd.gate"] if name == "v.position_embd.gate" else [name]:
            content = 1 - stored[0] if same == "v.position_embd.gate" else stored[0]
            file.add_tensor(same, content, raw_dtype=stored[1])
    for file in files.values():
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
    save_file({name: tensor.contiguous() for name, tensor in values.items()}, twin / "model.safetensors")
    return twin


def _add_settings(file: gguf.GGUFWriter, config: ModelConfig, *, vision: bool) -> None:
    decoder = config.decoder
    file.add_file_type(15)
    file.add_block_count(config.num_layers)
    file.add_context_length(decoder.max_context)
    file.add_embedding_length(decoder.width)
    file.add_feed_forward_length(decoder.mlp_dim)
    file.add_head_count(decoder.num_heads)
    file.add_head_count_kv(decoder.num_kv_heads)
    file.add_rope_freq_base(decoder.rope_theta)
    file.add_layer_norm_rms_eps(decoder.norm_eps)
    file.add_vocab_size(decoder.vocab_size)
    file.add_rope_dimension_count(decoder.head_dim)
    if config.adapter is not None:
        file.add_array("mllama.attention.cross_attention_layers", list(config.adapter.cross_layers))
    device = torch.device("cpu")
    plain = frequencies(replace(decoder, rope_scaling=None), device)
    file.add_tensor("rope_freqs.weight", (plain / frequencies(decoder, device)).numpy())
    if vision:
        _add_vision_settings(file, config)
    add_tokenizer(file, Tokenizer.bytes_only().files("hf")["tokenizer.json"])


def add_tokenizer(file: gguf.GGUFWriter, json_file: bytes) -> None:
    """Add the lists that stand for a `tokenizer.json`."""
    described = json.loads(json_file)
    tokens = dict.fromkeys(described["model"]["vocab"], 1)
    tokens |= {token["content"]: 3 for token in described["added_tokens"]}
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("llama-bpe")
    file.add_token_list(list(tokens))
    file.add_token_types(list(tokens.values()))
    if merges := described["model"]["merges"]:
        file.add_token_merges(merges)


def _add_vision_settings(file: gguf.GGUFWriter, config: ModelConfig) -> None:
    vision = config.vision
    sizes = {
        "block_count": vision.num_local_layers,
        "global.block_count": vision.num_global_layers,
        "embedding_length": vision.width,
        "feed_forward_length": vision.mlp_dim,
        "attention.head_count": vision.num_heads,
        "image_size": vision.tile_size,
        "patch_size": vision.patch_size,
        "max_num_tiles": vision.max_tiles,
        "num_channels": 3,
    }
    for name, size in sizes.items():
        file.add_uint32(f"mllama.vision.{name}", size)
    file.add_array("mllama.vision.intermediate_layers_indices", list(vision.feature_layers))
    file.add_float32("mllama.vision.attention.layer_norm_epsilon", 1e-5)


def _arrange(name: str, tensor: Tensor, config: ModelConfig):
    """Return a tensor as the converter arranges it, and what brings it back."""
    if name.startswith("v.") and name.endswith(("gate", "attn_gate", "ffn_gate")):
        return tensor.tanh(), lambda _: tensor
    part = config.vision if name.startswith("v.") else config.decoder
    is_query = name.endswith(("attn_q.weight", "attn_q_proj.weight"))
    if not is_query and not name.endswith(("attn_k.weight", "attn_k_proj.weight")):
        return tensor, lambda expanded: expanded
    heads = part.num_heads if is_query else getattr(part, "num_kv_heads", part.num_heads)
    return (
        rearrange(tensor, "(h two pairs) d -> (h pairs two) d", h=heads, two=2),
        lambda expanded: rearrange(expanded, "(h pairs two) d -> (h two pairs) d", h=heads, two=2),
    )


def _kind(name: str, tensor: Tensor, kind: str) -> Kind:
    if tensor.ndim < 2 or name in _FLOAT_TABLES:
        return Kind.F32
    if kind == "F16" or name.startswith(("v.", "mm.")):
        return Kind.F16
    if kind != _MIXED:
        return Kind[kind]
    return Kind.Q6_K if re.search(r"^output\.|attn_v\.|ffn_down\.", name) else Kind.Q4_K


def _encode(tensor: Tensor, kind: Kind) -> tuple[tuple[np.ndarray, Kind], Tensor]:
    """Return what is stored for a tensor, and the values that it stands for."""
    values = tensor.numpy()
    if kind == Kind.F32:
        return (values, kind), tensor
    if kind == Kind.F16:
        return (values.astype(np.float16), kind), tensor.half().float()
    if kind == Kind.Q8_0:
        stored = gguf.quantize(values, kind)
        blocks = stored.reshape(-1, 34)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return (stored, kind), torch.from_numpy(scales * blocks[:, 2:].view(np.int8)).view(tensor.shape)
    blocks = [(_q4_k if kind == Kind.Q4_K else _q6_k)(block) for block in values.reshape(-1, 256)]
    stored = np.concatenate([stored for stored, _ in blocks]).reshape(len(values), -1)
    return (stored, kind), torch.tensor(np.stack([value for _, value in blocks])).float().view(tensor.shape)


def _q4_k(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay out 256 weights: 8 groups, each with a scale and a least value of 6 bits."""
    groups = block.reshape(8, 32)
    least = -np.minimum(groups.min(1), 0)
    steps = (groups.max(1) + least) / 15
    d, d_least = np.float16(steps.max() / 63), np.float16(least.max() / 63)
    scale = np.clip(np.round(steps / np.float32(d)), 1, 63).astype(int)
    offset = np.clip(np.round(least / np.float32(d_least)), 0, 63).astype(int) if d_least else np.zeros(8, int)
    step, low = np.float32(d) * scale[:, None], np.float32(d_least) * offset[:, None]
    numbers = np.clip(np.round((groups + low) / step), 0, 15).astype(np.uint8)
    packed = [0] * 12
    for group in range(4):
        packed[group] = scale[group] | (scale[group + 4] >> 4) << 6
        packed[group + 4] = offset[group] | (offset[group + 4] >> 4) << 6
        packed[group + 8] = (scale[group + 4] & 15) | (offset[group + 4] & 15) << 4
    halves = np.concatenate([numbers[pair] | numbers[pair + 1] << 4 for pair in range(0, 8, 2)])
    head = np.array([d, d_least], np.float16).view(np.uint8)
    return np.concatenate([head, np.array(packed, np.uint8), halves]), (step * numbers - low).reshape(256)


def _q6_k(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay out 256 weights: 16 groups, each with a scale of 8 bits; the upper 2 bits of the numbers apart."""
    groups = block.reshape(16, 16)
    steps = np.abs(groups).max(1) / 31
    d = np.float16(steps.max() / 127)
    scale = np.clip(np.round(steps / np.float32(d)), 1, 127).astype(np.int8)
    step = np.float32(d) * scale[:, None].astype(np.float32)
    numbers = np.clip(np.round(groups / step), -32, 31)
    codes = (numbers.reshape(2, 4, 32) + 32).astype(np.uint8)
    low, high = [], []
    for first, second, third, fourth in codes:
        low += [first & 15 | (third & 15) << 4, second & 15 | (fourth & 15) << 4]
        high.append(first >> 4 | second >> 4 << 2 | third >> 4 << 4 | fourth >> 4 << 6)
    parts = [*low, *high, scale.view(np.uint8), np.array([d], np.float16).view(np.uint8)]
    return np.concatenate(parts), (step * numbers).reshape(256)
