"""Model to checkpoint: arranged as the format wants it, written beside, moved into place."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vlm.checkpoint import hf, hf_config, meta, meta_config
from vlm.checkpoint.files import invalid
from vlm.checkpoint.hf_writing import write_hf, write_json
from vlm.checkpoint.keys import Key
from vlm.checkpoint.position_tables import why_not_cells
from vlm.checkpoint.staging import staged
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel
from vlm.quantization import QuantizedWeight, quantized_layers
from vlm.tokenizer import Tokenizer

_TABLES = ("encoder.tile_position_before.table", "encoder.patch_position.table", "encoder.tile_position_after.table")


def save_model(
    model: VisionLanguageModel,
    folder: Path,
    *,
    format: Literal["hf", "meta"] = "hf",
    max_shard_bytes: float = 5e9,
    write_more: Callable[[Path], None] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write `model` into `folder`, whole or not at all; other files that are there stay.

    `write_more` gets the folder in which the files are prepared and may add its own, a tokenizer's say. `tokenizer`:
    whose ids Hugging Face's settings name; see `hf_config.token_ids`.

    Raises VLMError where the disk is full, the folder cannot be written to or holds the other format, or the model
    has what Meta's layout cannot hold: other position tables, or quantised layers.
    """
    folder = Path(folder).absolute()
    check_folder(folder, format)
    weights = _ModelWeights(model)
    odd = {key.ours for key in (hf if format == "hf" else meta).keys(model.config)} ^ weights.names
    if odd:
        raise invalid(f"the model's tensors are not its config's ({', '.join(sorted(odd))!s:.120}); save a plain model")
    if format == "hf":
        write_hf(weights, folder, max_shard_bytes, write_more, tokenizer)
        return
    if weights.schemes:
        raise invalid('quantised layers have no form in Meta\'s layout; save with format="hf", or the original weights')
    _check_tables(model, weights.shapes)
    with staged(folder, last=(meta_config.CONFIG,), stale=_weight_names(folder)) as staging:
        _write_meta(model, meta.keys(model.config), weights.shapes, staging)
        write_json(staging / meta_config.CONFIG, meta_config.write_config(model.config, weights.dtype))
        if write_more is not None:
            write_more(staging)


def check_folder(folder: Path, format: str) -> None:
    """Raise VLMError where a checkpoint of that format cannot be written into `folder`."""
    if format not in ("hf", "meta"):
        raise VLMError("invalid_request", f'format is {format!r:.40}; give "hf" or "meta"')
    other = meta_config if format == "hf" else hf_config
    try:
        is_file, is_other = folder.exists() and not folder.is_dir(), (folder / other.CONFIG).exists()
    except OSError as error:
        raise invalid(
            f"nothing can be saved in {folder.name:.80} ({error.strerror}); give a folder that you may write to"
        ) from None
    if is_file:
        raise invalid(f"{folder.name} is a file; give a folder to save into")
    if is_other:
        raise invalid(f"{folder.name} holds {other.CONFIG}, a checkpoint of the other format; give another folder")


class _ModelWeights:
    """The weights of a model in memory."""

    def __init__(self, model: VisionLanguageModel):
        self.config = model.config
        self._layers = quantized_layers(model)
        self.schemes = {name: layer.scheme for name, layer in self._layers.items()}
        buffers = {f"{name}.{part}" for name in self._layers for part in QuantizedWeight._fields}
        self.shapes = {name: tensor for name, tensor in model.state_dict().items() if name not in buffers}
        self.names = set(self.shapes) | {f"{name}.weight" for name in self._layers}
        self.dtype = next(iter(self.shapes.values())).dtype

    def dtype_of(self, name: str) -> torch.dtype:
        return self.shapes[name].dtype

    def read(self, name: str) -> Tensor:
        return self.shapes[name]

    def read_quantized(self, layer: str) -> QuantizedWeight:
        return self._layers[layer].stored()

    def size(self, layer: str) -> tuple[int, int]:
        return self._layers[layer].out_features, self._layers[layer].in_features


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


def _weight_names(folder: Path) -> list[str]:
    """The weight files of Meta's format that `folder` holds now."""
    return [path.name for path in folder.glob("consolidated*.pth")] if folder.exists() else []
