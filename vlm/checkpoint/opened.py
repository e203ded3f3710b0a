"""A checkpoint that is open: compared with its settings name by name, then read a tensor at a time by our names."""

import logging
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from vlm.checkpoint import (
    bitsandbytes_tensors,
    hf,
    hf_config,
    meta,
    meta_config,
    mlx_tensors,
    ollama,
    quantized_tensors,
)
from vlm.checkpoint.empty import empty_model
from vlm.checkpoint.files import invalid
from vlm.checkpoint.keys import Key
from vlm.checkpoint.quantization_config import BITSANDBYTES, METHOD, MLX
from vlm.checkpoint.quantized_tensors import PackedTensor
from vlm.checkpoint.stored import MappedTensor, QuantizedTensor, StoredTensor
from vlm.config import ModelConfig
from vlm.errors import VLMError
from vlm.native import in_large_pages
from vlm.quantization import QuantizedWeight, Scheme, check_precision, plan, quantize, quantized_config

logger = logging.getLogger(__name__)

# What tensors end with that other programs quantised, where the settings do not say so.
_OTHERS = {".qweight": "AWQ or GPTQ", ".q_weight": "EXL2", ".trellis": "EXL3", ".W_q": "HQQ"}
_FOLDS = {METHOD: quantized_tensors.fold, BITSANDBYTES: bitsandbytes_tensors.fold, MLX: mlx_tensors.fold}


class OpenCheckpoint:
    """The tensors of one folder; they can be read as long as `opened`."""

    def __init__(self, folder: Path, config: ModelConfig | None, opened: ExitStack):
        """Raises VLMError whose `report` lists every missing, unexpected and misshapen tensor."""
        tables, self._settings = format_of(folder)
        self.folder, self.config = folder, config or self._settings.read_config(folder)
        self.model = empty_model(self.config)
        """The model without values."""
        self.shapes = self.model.state_dict()
        """Every tensor of it by name."""
        keys = tables.keys(self.config)
        self._stored = tables.open_tensors(folder, self.config, opened)
        self.quantization = hf_config.quantization(folder) if tables is hf else None
        """What the settings say of quantised weights."""
        if self.quantization is not None:
            shapes = _theirs(keys, self.shapes, self.config)
            self._stored = _FOLDS[self.quantization.method](self._stored, shapes, folder.name)
        _compare(folder, keys, self.shapes, self._stored, self.config)
        self._keys: dict[str, list[Key]] = {}
        for key in keys:
            self._keys.setdefault(key.ours, []).append(key)

    def dtype(self, asked: torch.dtype | str = "auto") -> torch.dtype:
        """Return the dtype asked for; "auto" is the one the settings name, else the one most bytes are stored in."""
        if isinstance(asked, torch.dtype):
            return asked
        if asked != "auto":
            raise VLMError("invalid_request", f'dtype is {asked!r:.40}; give a torch.dtype or "auto"')
        if (named := self._settings.read_dtype(self.folder)) is not None:
            return named
        num_bytes: dict[torch.dtype, int] = {}
        for tensor in self._stored.values():
            num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
        return max(num_bytes, key=num_bytes.get)

    def schemes(self, precision: str | None, group_size: int) -> dict[str, Scheme]:
        """Return how each layer of the model that is quantised shall be, by name: as stored, or as `precision` has it.

        Raises VLMError where a checkpoint is to be quantised that already is, otherwise.
        """
        check_precision(precision)
        stored = {
            f"decoder.{name}": self._first(f"decoder.{name}.weight").scheme
            for name, layer in self.model.decoder.named_modules()
            if isinstance(layer, nn.Linear) and isinstance(self._first(f"decoder.{name}.weight"), PackedTensor)
        }
        found = f"int{min(scheme.bits for scheme in stored.values())}" if stored else None
        if precision is not None and found not in (None, precision):
            raise VLMError(
                "invalid_request",
                f"{self.folder.name:.80} is {found} already and {precision} was asked for; leave quantize out to use "
                "it as it is, or give the original weights",
            )
        self._say_what_is_expanded(set(stored))
        if found or precision is None:
            return stored
        if self.config.decoder.tied:
            self._untie()
        return plan(self.model, precision, group_size)

    def read(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu", *, stays: bool = False) -> Tensor:
        """Return a tensor of the model in memory of its own, in large pages where it `stays` in the model.

        Raises VLMError where a second copy of it differs.
        """
        out = torch.empty(self.shapes[name].shape, dtype=dtype, device=device)
        out = in_large_pages(out) if stays else out
        for key in self._keys[name]:
            found = self._stored.get(key.theirs)
            if not key.alias and key.layout.to_ours is None:
                found.copy_to(key.layout.to_theirs(out, self.config))
            elif not key.alias:
                out.copy_(key.layout.to_ours(found.load(), self.config))
            elif found is not None and not self._is_same(found, name, out):
                raise invalid(
                    f"{key.theirs} differs from the embedding it is tied to; set the head untied in the settings"
                )
        return out

    def map(self, name: str, dtype: torch.dtype) -> MappedTensor | None:
        """Return a tensor of the model where it lies in its file; None where it lies there otherwise, or twice."""
        key, *others = (key for key in self._keys[name] if key.theirs in self._stored)
        found, shape = self._stored[key.theirs], self.shapes[name]
        # In the order of ours, however its axes are called over there.
        is_ours = key.layout.to_ours is None and key.layout.to_theirs(shape, self.config).is_contiguous()
        mapped = found.map() if is_ours and not others and found.dtype == dtype else None
        return mapped and mapped._replace(values=mapped.values.view(shape.shape))

    def read_quantized(self, layer: str, scheme: Scheme, dtype: torch.dtype) -> QuantizedWeight:
        """Return the weights of a layer as `scheme` has them, on the CPU: as stored, or quantised now."""
        name = f"{layer}.weight"
        found = self._first(name)
        if isinstance(found, PackedTensor) and found.scheme == scheme:
            codes, scales, zeros = found.load_quantized()
            return QuantizedWeight(codes, scales.to(dtype), zeros)
        return quantize(self.read(name, found.dtype), scheme, dtype)

    def _untie(self) -> None:
        """Go on as the checkpoint of a model whose head is its own, and has the embedding's values."""
        self.config = quantized_config(self.config)
        self.model = empty_model(self.config)
        self.shapes = self.model.state_dict()
        embedding = next(key for key in self._keys["decoder.embedding.weight"] if not key.alias)
        self._keys["decoder.head.weight"] = [embedding._replace(ours="decoder.head.weight")]

    def _is_same(self, found: StoredTensor, name: str, tensor: Tensor) -> bool:
        """Say whether a second copy holds what the tensor of that name holds."""
        return found.place == self._first(name).place or torch.equal(found.load().to(tensor), tensor)

    def _first(self, name: str) -> StoredTensor:
        return self._stored[next(key.theirs for key in self._keys[name] if not key.alias)]

    def _say_what_is_expanded(self, kept: set[str]) -> None:
        quantized = [name for name in self._keys if isinstance(self._first(name), QuantizedTensor)]
        expanded = [name for name in quantized if name.removesuffix(".weight") not in kept]
        if expanded:
            logger.info("%d quantised tensors are expanded when they are read, for they are stored in a way that no "
                        "layer here computes with", len(expanded))  # fmt: skip
        if quantized and self.quantization is not None and self.quantization.of_activations:
            logger.warning(
                "this checkpoint was made for quantised activations or caches; here only its weights are quantised"
            )


def format_of(folder: Path) -> tuple[ModuleType, ModuleType]:
    """Return the key table and the settings of the format that `folder` holds."""
    if (folder / hf_config.CONFIG).exists():
        return hf, hf_config
    if (folder / meta_config.CONFIG).exists():
        return meta, meta_config
    if any(folder.glob(f"*{ollama.SUFFIX}")):
        return ollama, ollama
    raise invalid(
        f"{folder.name} holds neither config.json nor params.json, nor a GGUF file; give the folder of a checkpoint"
    )


def _theirs(keys: list[Key], shapes: dict[str, Tensor], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {key.theirs: tuple(key.layout.to_theirs(shapes[key.ours], config).shape) for key in keys}


def _compare(
    folder: Path, keys: list[Key], shapes: dict[str, Tensor], stored: dict[str, StoredTensor], config: ModelConfig
) -> None:
    """Raise one error that lists all that differs between what the model needs and what is stored."""
    expected = _theirs(keys, shapes, config)
    missing = [key.theirs for key in keys if key.theirs not in stored and not key.alias]
    unexpected = [name for name in stored if name not in expected]
    for end, program in _OTHERS.items():
        if any(name.endswith(end) for name in unexpected):
            raise invalid(
                f"{folder.name} holds weights that are quantised by {program}, which cannot be read; have the program "
                'that made it write it expanded, or give the original weights with quantize="int8" or "int4"'
            )
    misshapen = []
    for name, shape in expected.items():
        found = stored.get(name)
        if found is None:
            continue
        if found.shape != shape:
            misshapen.append(f"{name} {list(found.shape)}, expected {list(shape)}")
        elif not found.dtype.is_floating_point or found.dtype.itemsize < 2:
            misshapen.append(
                f"{name} is {str(found.dtype).removeprefix('torch.')}, expected a float of 16 bits or more"
            )
    if missing or unexpected or misshapen:
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected and {len(misshapen)} misshapen tensors"
        lists = [
            f"{title}: {', '.join(names)}"
            for title, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
            if names
        ]
        raise invalid(f"{folder.name} has {counts}; give weights and settings of one model. {'; '.join(lists)}")
