"""Checkpoint to model: compare every name, shape and dtype first, then read tensor by tensor."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint import hf_config, ollama
from vlm.checkpoint.files import invalid
from vlm.checkpoint.mapped import MappedWeights
from vlm.checkpoint.memory import check_memory, gpu_free_bytes, is_short_of_memory
from vlm.checkpoint.offload import Offload, choose, stream
from vlm.checkpoint.opened import OpenCheckpoint, format_of
from vlm.checkpoint.quantization_config import Quantization
from vlm.checkpoint.stored import MappedTensor
from vlm.config import ModelConfig
from vlm.model import VisionLanguageModel
from vlm.quantization import GROUP_SIZES, Scheme
from vlm.quantization.linear import arrange_layers, put_quantized_layers

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_CHUNK = 1 << 22


def read_config(folder: Path) -> ModelConfig:
    """Return the config of a Hugging Face or a Meta folder, told apart by what they hold."""
    folder = Path(folder).absolute()
    with readable(folder):
        return format_of(folder)[1].read_config(folder)


def stored_precision(folder: Path) -> str | None:
    """Return in words how the weights of a folder are quantised; None where they are not."""
    folder = Path(folder).absolute()
    with readable(folder):
        found = _quantization(folder)
    if found is None:
        return None
    return found.kinds if found.stays else f"{found.kinds}, expanded when read"


def stays_quantized(folder: Path) -> bool:
    """Tell whether the weights of a folder are quantised and stay as they are stored when they are loaded."""
    folder = Path(folder).absolute()
    with readable(folder):
        found = _quantization(folder)
    return found is not None and found.stays


def load_model(
    folder: Path,
    *,
    config: ModelConfig | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    check_finite: bool = False,
    quantize: str | None = None,
    group_size: int = GROUP_SIZES[0],
    low_memory: bool | None = False,
    progress: Callable[[int, int], None] | None = None,
) -> VisionLanguageModel:
    """Return the model that `folder` holds, in evaluation mode, in memory of its own.

    `dtype` "auto" is the checkpoint's own. `check_finite` looks for NaN and infinity in every weight. Weights of
    equal shape that were swapped cannot be noticed; `verify_checksums` can where the folder has a SHA256SUMS.
    `quantize` "int8" or "int4", with `group_size` weights a scale, quantises the decoder layer by layer; a checkpoint
    that is quantised stays so.

    low_memory: on a CPU the encoder, the projector and an embedding that is no output head stay in their safetensors
        files as long as the model is used, where they are stored in its dtype; these files must not be written into.
        None: so where the model would leave too little memory free. On a GPU the encoder's layers stay in the CPU's
        memory, and as many of the decoder's as have to. None: as few of either as have to; see `offload.py`.
    progress: called with the number of weights read by then and of all.

    Raises VLMError whose `report` lists every missing, unexpected and misshapen tensor.
    """
    folder = Path(folder).absolute()
    device = torch.device(device)
    with readable(folder), ExitStack() as opened:
        source = OpenCheckpoint(folder, config, opened)
        schemes = source.schemes(quantize, group_size)
        dtype, model = source.dtype(dtype), source.model
        put_quantized_layers(model, schemes)
        mapped, offload = _elsewhere(source, dtype, device, low_memory)
        state = _read(source, schemes, dtype, device, mapped, offload, progress or (lambda *_: None))
    if check_finite:
        _check_finite(folder, state)
    model.load_state_dict(state, strict=True, assign=True)
    # What is arranged is a copy: the weights as they were read must not be held any longer.
    del state
    arrange_layers(model)
    if mapped:
        logger.info("%d weights stay in their files, to save memory", len(mapped))
        model.release = MappedWeights(model, mapped).release
    elif any(offload):
        stream(model, offload, device)
    elif low_memory:
        logger.warning(
            "low_memory changes nothing here: only safetensors files can stay on disk, on a CPU, in the dtype they have"
            "; for a GPU an encoder can stay in the CPU's memory"
        )
    return model.eval()


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into the error of a checkpoint."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise invalid(f"{folder.name} cannot be read: {why}; check its permissions and the disk") from None


def _quantization(folder: Path) -> Quantization | None:
    settings = format_of(folder)[1]
    return settings.quantization(folder) if settings in (hf_config, ollama) else None


def _elsewhere(
    source: OpenCheckpoint, dtype: torch.dtype, device: torch.device, low_memory: bool | None
) -> tuple[dict[str, MappedTensor], Offload]:
    """Return, mapped, what stays in its file, and what stays in the CPU's memory for a GPU.

    Raises VLMError where there is too little memory for the rest.
    """
    shapes, free = source.model.state_dict(), gpu_free_bytes(device)
    if free is not None:
        offload = choose(source.model, dtype, free, low_memory)
        check_memory({name: shape for name, shape in shapes.items() if offload.holds(name)}, dtype, _CPU)
        return {}, offload
    is_wanted = is_short_of_memory(shapes, dtype) if low_memory is None else low_memory
    mapped = _map(source, dtype) if is_wanted and device.type == "cpu" else {}
    check_memory({name: shape for name, shape in shapes.items() if name not in mapped}, dtype, device)
    return mapped, Offload()


def _map(source: OpenCheckpoint, dtype: torch.dtype) -> dict[str, MappedTensor]:
    """Return, mapped, the weights that are looked at seldom: when a picture comes, and a few rows for a prompt."""
    names = [name for name in source.shapes if name.startswith(("encoder.", "projector."))]
    if not source.config.decoder.tied:
        names.append("decoder.embedding.weight")
    found = {name: source.map(name, dtype) for name in names}
    return {name: mapped for name, mapped in found.items() if mapped is not None}


def _read(
    source: OpenCheckpoint,
    schemes: Mapping[str, Scheme],
    dtype: torch.dtype,
    device: torch.device,
    mapped: Mapping[str, MappedTensor],
    offload: Offload,
    progress: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """Read all tensors, the largest first: what one needs for itself while it is turned then never adds to the peak."""
    state = {name: found.values for name, found in mapped.items()}
    sizes = {name: shape.numel() for name, shape in source.shapes.items() if name not in mapped}
    done, total = 0, sum(sizes.values())
    for name in sorted(sizes, key=sizes.get, reverse=True):
        layer = name.removesuffix(".weight")
        if layer in schemes:
            weight = source.read_quantized(layer, schemes[layer], dtype)
            parts = zip(weight._fields, weight, strict=True)
            state |= {f"{layer}.{part}": tensor.to(device) for part, tensor in parts if tensor is not None}
        else:
            # What stays in the CPU's memory is moved once more there, to where the GPU reads by itself.
            is_moved = offload.holds(name)
            state[name] = source.read(name, dtype, _CPU if is_moved else device, stays=not is_moved)
        done += sizes[name]
        progress(done, total)
    return state


def _check_finite(folder: Path, state: dict[str, Tensor]) -> None:
    """Raise one error that names every tensor with a NaN or an infinity."""
    bad = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point()
        and not all(bool(chunk.isfinite().all()) for chunk in tensor.flatten().split(_CHUNK))
    ]
    if bad:
        raise invalid(
            f"{folder.name} has NaN or infinite weights in {len(bad)} tensors; get it again: {', '.join(bad)}"
        )
