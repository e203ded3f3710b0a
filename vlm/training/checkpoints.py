"""The checkpoints of a run: each is complete or invisible, and the last good one is never deleted.

A checkpoint is a folder with a checksum of every file. It is written under another name, flushed to the disk and
renamed, so that no kill leaves half a one behind. What was damaged later is noticed by its checksums, and passed over.

Every process of a run writes its own shares, and a run goes on with another number of them: the files are safetensors
that say where in the whole tensor their contents belong (torch.distributed.checkpoint, its Hugging Face format).
"""

import errno
import json
import logging
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from vlm.checkpoint import staged, verify_checksums, write_checksums
from vlm.checkpoint.files import invalid, read_json
from vlm.checkpoint.safetensors_file import write_safetensors
from vlm.errors import VLMError
from vlm.training.parallel.world import World

logger = logging.getLogger(__name__)

STATE, NUMBERS = "state.safetensors", "run.json"
_NAME = re.compile(r"step-(\d{8,})")


class State(NamedTuple):
    """Where a run stands."""

    step: int
    """Steps that are done."""
    weights: Mapping[str, Tensor]
    """What is trained, by name."""
    optimizers: Mapping[str, Mapping[str, Tensor]]
    """What the optimizers remember of each weight, by its name."""
    numbers: dict
    """Counters of the run."""


class CheckpointFolder:
    """The checkpoints of one run, of which the newest `keep` that are whole stay.

    All processes of a run call each method alike.
    """

    def __init__(self, folder: Path, *, keep: int, world: World | None = None):
        self.folder, self.keep, self.world = Path(folder), keep, world or World.alone()
        self._looked_at: dict[str, tuple[list, bool]] = {}
        """What the files of a checkpoint looked like when they were read, and whether it was whole; by its name."""

    def clean(self) -> None:
        """Remove what a kill left half written."""
        for path in self.folder.glob(".saving-*") if self.world.is_main else ():
            shutil.rmtree(path, ignore_errors=True)

    def save(self, state: State) -> Path:
        """Write a checkpoint, see that it can be read, then remove the oldest.

        Raises: VLMError where it cannot be written; the ones before it stay.
        """
        path = self.folder / f"step-{state.step:08d}"
        failure = None
        if self.world.is_main:
            try:
                self._save(path, state)
            except VLMError as error:
                failure = error.code, error.report
        elif staging := self.world.from_main(None):
            _help_write(Path(staging), _flat(state))
        if failure := self.world.from_main(failure):
            raise VLMError(*failure)
        return path

    def load(self, like: Mapping[str, Tensor | None] | None = None) -> State | None:
        """Return the newest checkpoint that is whole; None where there is none at all.

        `like`: what is trained by name, with the weights of this process (None for those of others), as which is read
        what is theirs; without it everything is, whole.

        Raises: VLMError where there are some and each is damaged, or where other weights are trained.
        """
        found = None
        with self.world.main_first():
            if self.world.is_main:
                found = self._newest_whole()
        found = self.world.from_main(found)
        return None if found is None else _read(self.folder / found, like)

    def newest_alone(self) -> State | None:
        """Return the newest whole checkpoint, all of it, in this process without the others."""
        return CheckpointFolder(self.folder, keep=self.keep).load()

    def _save(self, path: Path, state: State) -> None:
        """Write a checkpoint in the main process, the others helping."""
        asked = False
        try:
            if path.exists():
                if _is_whole(path):
                    # Told to stop right after a save: the same step twice, and until it is written the only one.
                    return
                # Passed over when the run was taken up, it would be passed over again.
                shutil.rmtree(path)
            with staged(path) as staging:
                self.world.from_main(str(staging))
                asked = True
                if self.world.size == 1:
                    write_safetensors(staging / STATE, _flat(state))
                else:
                    _write_shares(staging, _flat(state))
                (staging / NUMBERS).write_text(json.dumps({"step": state.step, **state.numbers}) + "\n")
                write_checksums(staging)
        finally:
            if not asked:
                self.world.from_main(None)
        verify_checksums(path)
        self._looked_at[path.name] = _looks(path), True
        self._prune()

    def _prune(self) -> None:
        """Remove what is older than the newest `keep` that are whole."""
        num_whole = 0
        for path in self._newest_first():
            if num_whole == self.keep:
                shutil.rmtree(path, ignore_errors=True)
            else:
                num_whole += self._is_still_whole(path)

    def _is_still_whole(self, path: Path) -> bool:
        """Tell whether a checkpoint is whole; it is read again only if its files look otherwise than last time."""
        looks = _looks(path)
        known, whole = self._looked_at.get(path.name, (None, False))
        if known != looks:
            whole = _is_whole(path)
            self._looked_at[path.name] = looks, whole
        return whole

    def _newest_whole(self) -> str | None:
        paths = self._newest_first()
        for path in paths:
            if _is_whole(path):
                return path.name
        if paths:
            raise invalid(
                f"all {len(paths)} checkpoints of the run are damaged; expected one that is whole; "
                "remove them to begin anew, or give another folder"
            )
        return None

    def _newest_first(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]), reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        verify_checksums(path)
    except VLMError as error:
        logger.warning("%s is damaged and is passed over, for the one before it: %s", path.name, error.message)
        return False
    return True


def _looks(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of the last change of every file."""
    entries = [(file.name, file.stat()) for file in path.iterdir()]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in entries)


def _flat(state: State) -> dict[str, Tensor]:
    """Return all tensors of a state under one name each; numbers as tensors of one value."""
    tensors = {f"weight/{name}": weight.detach() for name, weight in state.weights.items()}
    for name, parts in state.optimizers.items():
        for part, tensor in parts.items():
            key = f"optimizer/{name}/{part}"
            tensors |= {key: tensor} if tensor.ndim else {f"{key}/number": tensor.reshape(1)}
    return tensors


def _write_shares(staging: Path, tensors: dict[str, Tensor]) -> None:
    try:
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(staging), save_distributed=True))
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        number = next((cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno), errno.EIO)
        raise OSError(number, f"{type(causes[0]).__name__}: {causes[0]}") from error


def _help_write(staging: Path, tensors: dict[str, Tensor]) -> None:
    """Write this process's shares; whether all were written is the main process's to say."""
    try:
        _write_shares(staging, tensors)
    except OSError as error:
        logger.error("this process could not write its share of a checkpoint: %s", error.strerror)


def _read(path: Path, like: Mapping[str, Tensor | None] | None) -> State:
    numbers = read_json(path, NUMBERS)
    step = numbers.pop("step", None)
    if not isinstance(step, int):
        raise invalid(f"{NUMBERS} names no step; take an older checkpoint")
    reader = dcp.HuggingFaceStorageReader(str(path))
    entries = reader.read_metadata().state_dict_metadata
    trained = {key.split("/")[1]: entry.size for key, entry in entries.items() if key.startswith("weight/")}
    if like is not None and not (
        set(trained) == set(like) and all(here is None or here.shape == trained[name] for name, here in like.items())
    ):
        raise invalid("the checkpoint trains other weights; give another folder as out")
    tensors = {}
    for key, entry in entries.items():
        here = None if like is None else like[key.split("/")[1]]
        if like is None or (here is not None and key.endswith("/number")):
            tensors[key] = torch.empty(entry.size, dtype=entry.properties.dtype)
        elif here is not None:
            tensors[key] = torch.empty_like(here, requires_grad=False)
    with warnings.catch_warnings():
        # It warns that one process alone reads, which is meant.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=like is None)
    weights, optimizers = {}, {}
    for key, tensor in tensors.items():
        kind, name, *part = key.split("/")
        if kind == "weight":
            weights[name] = tensor
        else:
            optimizers.setdefault(name, {})[part[0]] = tensor.reshape(()) if part[1:] else tensor
    return State(step, weights, optimizers, numbers)
