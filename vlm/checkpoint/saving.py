"""Model to checkpoint: arranged as the format wants it, written beside, moved into place."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vlm.checkpoint import hf, hf_config, meta, meta_config
from vlm.checkpoint.files import invalid
from vlm.checkpoint.keys import Key
from vlm.checkpoint.position_tables import why_not_cells
from vlm.checkpoint.safetensors_file import write_safetensors
from vlm.checkpoint.staging import staged
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel

_TABLES = ("encoder.tile_position_before.table", "encoder.patch_position.table", "encoder.tile_position_after.table")


def save_model(
    model: VisionLanguageModel,
    folder: Path,
    *,
    format: Literal["hf", "meta"] = "hf",
    max_shard_bytes: float = 5e9,
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write `model` into `folder`, whole or not at all; other files that are there stay.

    `write_more` gets the folder in which the files are prepared and may add its own, a tokenizer's say.

    Raises VLMError where the disk is full, the folder cannot be written to or holds the other format, or the model
    has position tables that Meta's layout cannot hold.
    """
    folder = Path(folder).absolute()
    if format not in ("hf", "meta"):
        raise VLMError("invalid_request", f'format is {format!r:.40}; give "hf" or "meta"')
    if folder.exists() and not folder.is_dir():
        raise invalid(f"{folder.name} is a file; give a folder to save into")
    tables, settings, other = (hf, hf_config, meta_config) if format == "hf" else (meta, meta_config, hf_config)
    if (folder / other.CONFIG).exists():
        raise invalid(f"{folder.name} holds {other.CONFIG}, a checkpoint of the other format; give another folder")
    state = model.state_dict()
    keys = tables.keys(model.config)
    if odd := {key.ours for key in keys} ^ set(state):
        raise invalid(f"the model's tensors are not its config's ({', '.join(sorted(odd))!s:.120}); save a plain model")
    if format == "meta":
        _check_tables(model, state)
    with staged(folder, last=(hf.INDEX, settings.CONFIG), stale=_weight_names(folder, format)) as staging:
        dtype = next(iter(state.values())).dtype
        if format == "hf":
            _write_hf(model, keys, state, staging, max_shard_bytes)
        else:
            _write_meta(model, keys, state, staging)
        _write_json(staging / settings.CONFIG, settings.write_config(model.config, dtype))
        if write_more is not None:
            write_more(staging)


def _write_hf(
    model: VisionLanguageModel, keys: list[Key], state: dict[str, Tensor], staging: Path, max_shard_bytes: float
) -> None:
    shards = list(_shards([key for key in keys if not key.alias], state, max_shard_bytes))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = hf.WEIGHTS if len(shards) == 1 else hf.SHARD.format(number=number, count=len(shards))
        tensors = {key.theirs: key.layout.to_theirs(state[key.ours], model.config) for key in shard}
        write_safetensors(staging / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total_size = sum(state[key.ours].nbytes for shard in shards for key in shard)
        _write_json(staging / hf.INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})
    _write_json(staging / "generation_config.json", hf_config.token_ids(model.config.decoder.vocab_size))


def _shards(keys: list[Key], state: dict[str, Tensor], max_bytes: float) -> Iterator[list[Key]]:
    """Cut the keys into runs of at most `max_bytes`, or of one tensor that is larger."""
    shard, num_bytes = [], 0
    for key in keys:
        if shard and num_bytes + state[key.ours].nbytes > max_bytes:
            yield shard
            shard, num_bytes = [], 0
        shard.append(key)
        num_bytes += state[key.ours].nbytes
    yield shard


def _write_meta(model: VisionLanguageModel, keys: list[Key], state: dict[str, Tensor], staging: Path) -> None:
    tensors = {key.theirs: key.layout.to_theirs(state[key.ours].detach(), model.config).cpu() for key in keys}
    path = staging / meta.WEIGHTS
    try:
        torch.save(tensors, path)
    except RuntimeError as error:
        raise OSError(0, "the weights could not be written") from error


def _check_tables(model: VisionLanguageModel, state: dict[str, Tensor]) -> None:
    for name in _TABLES if model.config.vision is not None else ():
        if why := why_not_cells(state[name], model.config.vision):
            raise invalid(f'{name} has no form in Meta\'s layout: {why}; save with format="hf"')


def _weight_names(folder: Path, format: str) -> list[str]:
    """The weight files of one format that `folder` holds now."""
    patterns = (hf.WEIGHTS, hf.INDEX, "model-?????-of-?????.safetensors") if format == "hf" else ("consolidated*.pth",)
    return [path.name for pattern in patterns for path in folder.glob(pattern)] if folder.exists() else []


def _write_json(path: Path, settings: dict) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")
