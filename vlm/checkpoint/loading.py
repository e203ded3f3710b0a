"""Checkpoint to model: compare every name, shape and dtype first, then read tensor by tensor."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from vlm.checkpoint import hf, hf_config, meta, meta_config
from vlm.checkpoint.empty import empty_model
from vlm.checkpoint.files import invalid
from vlm.checkpoint.keys import Key
from vlm.checkpoint.memory import check_memory
from vlm.checkpoint.stored import StoredTensor
from vlm.config import ModelConfig
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel

_CHUNK = 1 << 22


def read_config(folder: Path) -> ModelConfig:
    """Return the config of a Hugging Face or a Meta folder, told apart by what they hold."""
    folder = Path(folder).absolute()
    with _readable(folder):
        return _format(folder)[1].read_config(folder)


def load_model(
    folder: Path,
    *,
    config: ModelConfig | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    check_finite: bool = False,
) -> VisionLanguageModel:
    """Return the model that `folder` holds, in evaluation mode, in memory of its own.

    `dtype` "auto" is the checkpoint's own. `check_finite` looks for NaN and infinity in every weight. Weights of
    equal shape that were swapped cannot be noticed; `verify_checksums` can where the folder has a SHA256SUMS.

    Raises VLMError whose `report` lists every missing, unexpected and misshapen tensor.
    """
    folder = Path(folder).absolute()
    with _readable(folder), ExitStack() as opened:
        tables, settings = _format(folder)
        config = config or settings.read_config(folder)
        model = empty_model(config)
        shapes = model.state_dict()
        stored = tables.open_tensors(folder, config, opened)
        keys = tables.keys(config)
        _compare(folder, keys, shapes, stored, config)
        dtype = _dtype(dtype, settings.read_dtype(folder), stored)
        check_memory(shapes, dtype, device)
        state = _read(keys, shapes, stored, config, dtype, torch.device(device))
    if check_finite:
        _check_finite(folder, state)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into the error of a checkpoint."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise invalid(f"{folder.name} cannot be read: {why}; check its permissions and the disk") from None


def _format(folder: Path) -> tuple[ModuleType, ModuleType]:
    """Return the key table and the settings of the format that `folder` holds."""
    if (folder / hf_config.CONFIG).exists():
        return hf, hf_config
    if (folder / meta_config.CONFIG).exists():
        return meta, meta_config
    raise invalid(f"{folder.name} holds neither config.json nor params.json; give the folder of a checkpoint")


def _compare(
    folder: Path, keys: list[Key], shapes: dict[str, Tensor], stored: dict[str, StoredTensor], config: ModelConfig
) -> None:
    """Raise one error that lists all that differs between what the model needs and what is stored."""
    known = {key.theirs for key in keys}
    missing = [key.theirs for key in keys if key.theirs not in stored and not key.alias]
    unexpected = [name for name in stored if name not in known]
    misshapen = []
    for key in keys:
        found = stored.get(key.theirs)
        if found is None:
            continue
        expected = tuple(key.layout.to_theirs(shapes[key.ours], config).shape)
        if found.shape != expected:
            misshapen.append(f"{key.theirs} {list(found.shape)}, expected {list(expected)}")
        elif not found.dtype.is_floating_point or found.dtype.itemsize < 2:
            misshapen.append(
                f"{key.theirs} is {str(found.dtype).removeprefix('torch.')}, expected a float of 16 bits or more"
            )
    if missing or unexpected or misshapen:
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected and {len(misshapen)} misshapen tensors"
        lists = [
            f"{title}: {', '.join(names)}"
            for title, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
            if names
        ]
        raise invalid(f"{folder.name} has {counts}; give weights and settings of one model. {'; '.join(lists)}")


def _dtype(asked: torch.dtype | str, named: torch.dtype | None, stored: dict[str, StoredTensor]) -> torch.dtype:
    """Return the dtype asked for; "auto" is the one the settings name, else the one most bytes are stored in."""
    if isinstance(asked, torch.dtype):
        return asked
    if asked != "auto":
        raise VLMError("invalid_request", f'dtype is {asked!r:.40}; give a torch.dtype or "auto"')
    if named is not None:
        return named
    num_bytes: dict[torch.dtype, int] = {}
    for tensor in stored.values():
        num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
    return max(num_bytes, key=num_bytes.get)


def _read(
    keys: list[Key],
    shapes: dict[str, Tensor],
    stored: dict[str, StoredTensor],
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """Read all tensors, the largest first: what one needs for itself while it is turned then never adds to the peak."""
    state: dict[str, Tensor] = {}
    for key in sorted(keys, key=lambda key: (key.alias, -shapes[key.ours].numel())):
        found = stored.get(key.theirs)
        if key.alias:
            if found is not None and not _same(found, key, stored, keys, state):
                raise invalid(
                    f"{key.theirs} differs from the embedding it is tied to; set the head untied in the settings"
                )
            continue
        if key.ours not in state:
            state[key.ours] = torch.empty(shapes[key.ours].shape, dtype=dtype, device=device)
        if key.layout.to_ours is None:
            found.copy_to(key.layout.to_theirs(state[key.ours], config))
        else:
            state[key.ours].copy_(key.layout.to_ours(found.load(), config))
    return state


def _same(
    found: StoredTensor, alias: Key, stored: dict[str, StoredTensor], keys: list[Key], state: dict[str, Tensor]
) -> bool:
    """Say whether a second copy holds what its tensor holds."""
    first = next(stored[key.theirs] for key in keys if key.ours == alias.ours and not key.alias)
    if found.place == first.place:
        return True
    ours = state[alias.ours]
    return torch.equal(found.load().to(ours.device, ours.dtype), ours)


def _check_finite(folder: Path, state: dict[str, Tensor]) -> None:
    """Raise one error that names every tensor with a NaN or an infinity."""
    bad = [
        name
        for name, tensor in state.items()
        if not all(bool(chunk.isfinite().all()) for chunk in tensor.flatten().split(_CHUNK))
    ]
    if bad:
        raise invalid(
            f"{folder.name} has NaN or infinite weights in {len(bad)} tensors; get it again: {', '.join(bad)}"
        )
