"""The checkpoints of a run: each is complete or invisible, and the last good one is never deleted.

A checkpoint is a folder with a checksum of every file. It is written under another name, flushed to the disk and
renamed, so that no kill leaves half a one behind. What was damaged later is noticed by its checksums, and passed over.
"""

import errno
import json
import logging
import pickle
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.checkpoint import staged, verify_checksums, write_checksums
from vlm.checkpoint.files import invalid, read_json
from vlm.checkpoint.safetensors_file import open_safetensors, write_safetensors
from vlm.errors import VLMError

logger = logging.getLogger(__name__)

WEIGHTS, OPTIMIZERS, NUMBERS = "trained.safetensors", "optimizers.pt", "run.json"
_NAME = re.compile(r"step-(\d{8,})")


class State(NamedTuple):
    """Where a run stands."""

    step: int
    """Steps that are done."""
    weights: Mapping[str, Tensor]
    """What is trained, by name."""
    optimizers: list[dict]
    numbers: dict
    """Counters of the run."""


class CheckpointFolder:
    """The checkpoints of one run, of which the newest `keep` stay."""

    def __init__(self, folder: Path, *, keep: int):
        self.folder, self.keep = Path(folder), keep

    def clean(self) -> None:
        """Remove what a kill left half written."""
        for path in self.folder.glob(".saving-*"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, state: State) -> Path:
        """Write a checkpoint, see that it can be read, then remove the oldest.

        Raises: VLMError where it cannot be written; the ones before it stay.
        """
        path = self.folder / f"step-{state.step:08d}"
        if path.exists():
            # A damaged one, passed over when the run was taken up: it would be passed over again.
            shutil.rmtree(path)
        with staged(path) as staging:
            write_safetensors(staging / WEIGHTS, state.weights)
            try:
                torch.save(state.optimizers, staging / OPTIMIZERS)
            except RuntimeError as error:
                raise OSError(errno.EIO, "the state of the optimizers could not be written") from error
            (staging / NUMBERS).write_text(json.dumps({"step": state.step, **state.numbers}) + "\n")
            write_checksums(staging)
        verify_checksums(path)
        for old in self._newest_first()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def load(self) -> State | None:
        """Return the newest checkpoint that is whole; None where there is none at all.

        Raises: VLMError where there are some and each is damaged.
        """
        paths = self._newest_first()
        for path in paths:
            try:
                return _read(path)
            except VLMError as error:
                logger.warning("%s is damaged and is passed over, for the one before it: %s", path.name, error.message)
        if paths:
            raise invalid(
                f"all {len(paths)} checkpoints of the run are damaged; expected one that is whole; "
                "remove them to begin anew, or give another folder"
            )
        return None

    def _newest_first(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]), reverse=True)


def _read(path: Path) -> State:
    verify_checksums(path)
    numbers = read_json(path, NUMBERS)
    with ExitStack() as opened:
        weights = {name: stored.load() for name, stored in open_safetensors(path, WEIGHTS, opened).items()}
    try:
        optimizers = torch.load(path / OPTIMIZERS, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise invalid(f"{OPTIMIZERS} cannot be read ({type(error).__name__}); take an older checkpoint") from None
    step = numbers.pop("step", None)
    if not isinstance(step, int):
        raise invalid(f"{NUMBERS} names no step; take an older checkpoint")
    return State(step, weights, optimizers, numbers)
