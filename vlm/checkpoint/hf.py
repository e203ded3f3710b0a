"""Hugging Face folders: the key table of `mllama` and of text-only `llama`, and where the weights lie.

Source: transformers models/mllama/modeling_mllama.py and models/llama/modeling_llama.py, module names.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from einops import rearrange

from vlm.checkpoint.files import invalid, read_json
from vlm.checkpoint.keys import SAME, Key, Layout, Rows, fill
from vlm.checkpoint.safetensors_file import open_safetensors
from vlm.checkpoint.stored import StoredTensor
from vlm.config import ModelConfig

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-{number:05d}-of-{count:05d}.safetensors"

_PATCHES = Layout(
    lambda ours, config: rearrange(
        ours, "v (c y x) -> v c y x", y=config.vision.patch_size, x=config.vision.patch_size, c=3
    )
)
_FLAT = Layout(lambda ours, config: ours.flatten(1))

# ours, theirs, layout. {text} is `language_model.model` or, in text-only folders, `model`.
_TEXT: Rows = (
    ("decoder.embedding.weight", "{text}.embed_tokens.weight"),
    ("decoder.norm.weight", "{text}.norm.weight"),
)
_HEAD: Rows = (("decoder.head.weight", "{head}.weight"),)
# A tied head is not stored; some fine-tunes store the same values again.
_TIED_HEAD: Rows = (("decoder.embedding.weight", "{head}.weight", SAME, None, True),)
_MLP: Rows = (
    ("decoder.layers.{place}.attention_norm.weight", "{text}.layers.{place}.input_layernorm.weight"),
    ("decoder.layers.{place}.mlp_norm.weight", "{text}.layers.{place}.post_attention_layernorm.weight"),
    ("decoder.layers.{place}.mlp.gate_proj.weight", "{text}.layers.{place}.mlp.gate_proj.weight"),
    ("decoder.layers.{place}.mlp.up_proj.weight", "{text}.layers.{place}.mlp.up_proj.weight"),
    ("decoder.layers.{place}.mlp.down_proj.weight", "{text}.layers.{place}.mlp.down_proj.weight"),
)
_SELF_LAYER: Rows = (
    ("decoder.layers.{place}.attention.q_proj.weight", "{text}.layers.{place}.self_attn.q_proj.weight"),
    ("decoder.layers.{place}.attention.k_proj.weight", "{text}.layers.{place}.self_attn.k_proj.weight"),
    ("decoder.layers.{place}.attention.v_proj.weight", "{text}.layers.{place}.self_attn.v_proj.weight"),
    ("decoder.layers.{place}.attention.o_proj.weight", "{text}.layers.{place}.self_attn.o_proj.weight"),
    *_MLP,
)
_CROSS_LAYER: Rows = (
    ("decoder.layers.{place}.attention.q_proj.weight", "{text}.layers.{place}.cross_attn.q_proj.weight"),
    ("decoder.layers.{place}.attention.k_proj.weight", "{text}.layers.{place}.cross_attn.k_proj.weight"),
    ("decoder.layers.{place}.attention.v_proj.weight", "{text}.layers.{place}.cross_attn.v_proj.weight"),
    ("decoder.layers.{place}.attention.o_proj.weight", "{text}.layers.{place}.cross_attn.o_proj.weight"),
    ("decoder.layers.{place}.attention.q_norm.weight", "{text}.layers.{place}.cross_attn.q_norm.weight"),
    ("decoder.layers.{place}.attention.k_norm.weight", "{text}.layers.{place}.cross_attn.k_norm.weight"),
    ("decoder.layers.{place}.attention_gate", "{text}.layers.{place}.cross_attn_attn_gate"),
    ("decoder.layers.{place}.mlp_gate", "{text}.layers.{place}.cross_attn_mlp_gate"),
    *_MLP,
)
_VISION: Rows = (
    ("encoder.patch_embedding.weight", "vision_model.patch_embedding.weight", _PATCHES),
    ("encoder.class_embedding", "vision_model.class_embedding"),
    ("encoder.tile_position_before.gate", "vision_model.pre_tile_positional_embedding.gate"),
    ("encoder.tile_position_before.table", "vision_model.pre_tile_positional_embedding.embedding.weight", _FLAT),
    ("encoder.tile_position_after.gate", "vision_model.post_tile_positional_embedding.gate"),
    ("encoder.tile_position_after.table", "vision_model.post_tile_positional_embedding.embedding.weight", _FLAT),
    ("encoder.patch_position.gate", "vision_model.gated_positional_embedding.gate"),
    ("encoder.patch_position.embedding", "vision_model.gated_positional_embedding.embedding"),
    ("encoder.patch_position.table", "vision_model.gated_positional_embedding.tile_embedding.weight", _FLAT),
    ("encoder.norm_before.weight", "vision_model.layernorm_pre.weight"),
    ("encoder.norm_before.bias", "vision_model.layernorm_pre.bias"),
    ("encoder.norm_after.weight", "vision_model.layernorm_post.weight"),
    ("encoder.norm_after.bias", "vision_model.layernorm_post.bias"),
    ("projector.weight", "multi_modal_projector.weight"),
    ("projector.bias", "multi_modal_projector.bias"),
)
_VISION_LAYER: Rows = (
    ("{ours}.{place}.attention.q_proj.weight", "{theirs}.{place}.self_attn.q_proj.weight"),
    ("{ours}.{place}.attention.k_proj.weight", "{theirs}.{place}.self_attn.k_proj.weight"),
    ("{ours}.{place}.attention.v_proj.weight", "{theirs}.{place}.self_attn.v_proj.weight"),
    ("{ours}.{place}.attention.o_proj.weight", "{theirs}.{place}.self_attn.o_proj.weight"),
    ("{ours}.{place}.attention_norm.weight", "{theirs}.{place}.input_layernorm.weight"),
    ("{ours}.{place}.attention_norm.bias", "{theirs}.{place}.input_layernorm.bias"),
    ("{ours}.{place}.mlp_norm.weight", "{theirs}.{place}.post_attention_layernorm.weight"),
    ("{ours}.{place}.mlp_norm.bias", "{theirs}.{place}.post_attention_layernorm.bias"),
    ("{ours}.{place}.fc1.weight", "{theirs}.{place}.mlp.fc1.weight"),
    ("{ours}.{place}.fc1.bias", "{theirs}.{place}.mlp.fc1.bias"),
    ("{ours}.{place}.fc2.weight", "{theirs}.{place}.mlp.fc2.weight"),
    ("{ours}.{place}.fc2.bias", "{theirs}.{place}.mlp.fc2.bias"),
)
_GATES: Rows = (
    ("{ours}.{place}.attention_gate", "{theirs}.{place}.gate_attn"),
    ("{ours}.{place}.mlp_gate", "{theirs}.{place}.gate_ffn"),
)

# The published checkpoints' prefixes and those of transformers >= 4.52, whose loader takes either, and of mlx-vlm. We
# write the published ones, which older versions and other programs know too.
_GENERATIONS = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_model.", "vision_model."),
    ("vision_tower.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
# Buffers that transformers once saved; they follow from the config.
_BUFFER = re.compile(r".*\.rotary_emb\.inv_freq")


def keys(config: ModelConfig) -> list[Key]:
    """Return every key of a model, in the order of the model."""
    text = {"text": "language_model.model", "head": "language_model.lm_head"}
    if config.vision is None:
        text = {"text": "model", "head": "lm_head"}
    table = []
    if config.vision is not None:
        table += fill(_VISION)
        for rows, ours, theirs, count in (
            (_VISION_LAYER, "encoder.local_layers", "vision_model.transformer.layers", config.vision.num_local_layers),
            (_VISION_LAYER + _GATES, "encoder.global_layers", "vision_model.global_transformer.layers",
             config.vision.num_global_layers),
        ):  # fmt: skip
            for place in range(count):
                table += fill(rows, ours=ours, theirs=theirs, place=place)
    table += fill(_TEXT, **text)
    table += fill(_TIED_HEAD if config.decoder.tied else _HEAD, **text)
    cross_layers = config.adapter.cross_layers if config.adapter else ()
    for place in range(config.num_layers):
        table += fill(_CROSS_LAYER if place in cross_layers else _SELF_LAYER, place=place, **text)
    return table


def published(name: str, config: ModelConfig) -> str:
    """Return the published name of a tensor or a layer that may have a later one; text-only models have no other."""
    return _renamed(name, _GENERATIONS) if config.vision is not None else name


def today(name: str, config: ModelConfig) -> str:
    """Return the name that transformers has today for a published one, of a tensor or a layer."""
    return _renamed(name, ((old, new) for new, old in _GENERATIONS)) if config.vision is not None else name


def open_tensors(folder: Path, config: ModelConfig, opened: ExitStack) -> dict[str, StoredTensor]:
    """Return the tensors of `folder` by the published names."""
    shards, total_size = ({WEIGHTS: None}, None) if (folder / WEIGHTS).exists() else _read_index(folder)
    tensors: dict[str, StoredTensor] = {}
    num_bytes = 0
    for shard, names in shards.items():
        stored = open_safetensors(folder, shard, opened)
        if names is not None and set(stored) != names:
            odd = sorted(set(stored) ^ names)
            raise invalid(f"{shard} and {INDEX} disagree about {len(odd)} tensors: {', '.join(odd)}")
        for name, tensor in stored.items():
            num_bytes += tensor.num_bytes
            key = published(name, config)
            if key in tensors:
                raise invalid(f"{folder.name} stores {key} twice, as {name} too; keep one of them")
            if not _BUFFER.fullmatch(key):
                tensors[key] = tensor
    if total_size is not None and total_size != num_bytes:
        raise invalid(
            f"{INDEX} gives total_size {total_size!r:.40}; its shards hold {num_bytes:,}: download them again"
        )
    return tensors


def _read_index(folder: Path) -> tuple[dict[str, set[str]], object]:
    """Return the names that the index expects in each shard, and the bytes it expects of all tensors together."""
    if not (folder / INDEX).exists():
        raise invalid(f"{folder.name} holds neither {WEIGHTS} nor {INDEX}; download the weights too")
    index = read_json(folder, INDEX)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise invalid(f"{INDEX} holds no weight_map from tensor names to file names; download it again")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(shard, set()).add(name)
    return shards, metadata.get("total_size") if isinstance(metadata, dict) else None


def _renamed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    """Return a name with the first of the prefixes that it has replaced; the name of a layer may be all of one."""
    for old, new in prefixes:
        if f"{name}.".startswith(old):
            return (new + f"{name}.".removeprefix(old)).removesuffix(".")
    return name
