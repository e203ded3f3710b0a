"""Weights into a Hugging Face folder, a tensor at a time, wherever they come from: a model, or another checkpoint."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from vlm.checkpoint import hf, hf_config
from vlm.checkpoint.keys import Key
from vlm.checkpoint.picture_settings import PICTURES, write_picture_settings
from vlm.checkpoint.quantization_config import write_quantization
from vlm.checkpoint.quantized_tensors import unfold
from vlm.checkpoint.safetensors_file import write_safetensors
from vlm.checkpoint.staging import staged
from vlm.checkpoint.stored import ComputedTensor, StoredTensor
from vlm.config import ModelConfig
from vlm.quantization import QuantizedWeight, Scheme
from vlm.tokenizer import Tokenizer


class Weights(Protocol):
    """All weights of one model, read one by one by our names."""

    config: ModelConfig
    dtype: torch.dtype
    """What the settings name, and that of quantised weights' scales."""
    schemes: Mapping[str, Scheme]
    """How each quantised layer is, by name."""
    shapes: Mapping[str, Tensor]
    """Tensors as large as the weights that are not quantised, by name, with or without values."""

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype in which `read` returns a tensor."""

    def read(self, name: str) -> Tensor:
        """Return a tensor that is not quantised."""

    def read_quantized(self, layer: str) -> QuantizedWeight:
        """Return the weights of a quantised layer."""

    def size(self, layer: str) -> tuple[int, int]:
        """Return the outputs and inputs of a quantised layer."""


def write_hf(
    weights: Weights,
    folder: Path,
    max_shard_bytes: float,
    write_more: Callable[[Path], None] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write `weights` into `folder`, whole or not at all; see `save_model`."""
    keys = [key for key in hf.keys(weights.config) if not key.alias]
    with staged(folder, last=(hf.INDEX, hf_config.CONFIG), stale=[*_weight_names(folder), PICTURES]) as staging:
        shards = list(_shards(_tensors(weights, keys), max_shard_bytes))
        weight_map = {}
        for number, shard in enumerate(shards, start=1):
            name = hf.WEIGHTS if len(shards) == 1 else hf.SHARD.format(number=number, count=len(shards))
            write_safetensors(staging / name, shard)
            weight_map |= dict.fromkeys(shard, name)
        if len(shards) > 1:
            total_size = sum(tensor.num_bytes for shard in shards for tensor in shard.values())
            write_json(staging / hf.INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})
        ids = hf_config.token_ids(weights.config.decoder.vocab_size, tokenizer)
        write_json(staging / "generation_config.json", ids)
        if weights.config.vision is not None:
            write_json(staging / PICTURES, write_picture_settings(weights.config.vision))
        settings = hf_config.write_config(weights.config, weights.dtype, tokenizer)
        if weights.schemes:
            modules = {_module(key.theirs): weights.schemes.get(_module(key.ours)) for key in keys if _is_linear(key)}
            settings["quantization_config"] = write_quantization(modules)
        write_json(staging / hf_config.CONFIG, settings)
        if write_more is not None:
            write_more(staging)


def write_json(path: Path, settings: dict) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _tensors(weights: Weights, keys: list[Key]) -> Iterator[dict[str, StoredTensor]]:
    """Yield for each key the tensors of the file that stand for it."""
    for key in keys:
        layer = _module(key.ours)
        if layer in weights.schemes:
            read = partial(weights.read_quantized, layer)
            yield unfold(_module(key.theirs), weights.size(layer), weights.schemes[layer], weights.dtype, read)
        else:
            shape = key.layout.to_theirs(weights.shapes[key.ours], weights.config).shape
            yield {key.theirs: ComputedTensor(shape, weights.dtype_of(key.ours), partial(_read, weights, key))}


def _read(weights: Weights, key: Key) -> Tensor:
    return key.layout.to_theirs(weights.read(key.ours), weights.config)


def _shards(tensors: Iterator[dict[str, StoredTensor]], max_bytes: float) -> Iterator[dict[str, StoredTensor]]:
    """Put the tensors of whole keys together up to `max_bytes`, or of one key that is larger."""
    shard: dict[str, StoredTensor] = {}
    total = 0
    for parts in tensors:
        num_bytes = sum(part.num_bytes for part in parts.values())
        if shard and total + num_bytes > max_bytes:
            yield shard
            shard, total = {}, 0
        shard |= parts
        total += num_bytes
    yield shard


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _is_linear(key: Key) -> bool:
    """Say whether a key is of a layer that could be quantised: a linear one of the decoder."""
    return key.ours == "decoder.head.weight" or (key.ours.startswith("decoder.") and key.ours.endswith("_proj.weight"))


def _weight_names(folder: Path) -> list[str]:
    """The weight files of this format that `folder` holds now."""
    patterns = (hf.WEIGHTS, hf.INDEX, "model-?????-of-?????.safetensors")
    return [path.name for pattern in patterns for path in folder.glob(pattern)] if folder.exists() else []
