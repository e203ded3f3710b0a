"""The folder of a run, and what the run in it is: it can only be gone on with, never turned into another."""

import dataclasses
import json
from pathlib import Path
from typing import IO

from vlm.errors import VLMError
from vlm.tokenizer_files.disk import write_whole
from vlm.training.config import TrainConfig

SETTINGS, LOCK = "settings.json", "lock"
MAY_CHANGE = (
    "out", "checkpoints", "parallel", "micro_batch_size", "device", "recompute", "workers", "max_bad_steps",
    "log_every", "export_dtype", "samples", "tensorboard", "pack", "deterministic",
)  # fmt: skip
"""Settings that a run may be taken up with other values of; all others would make it another run."""


def lock_folder(folder: Path) -> IO[str]:
    """Return a file that, as long as it is open, keeps other processes from running in `folder`, which is made.

    The kernel lets go of it with the process, however that ends. Raises: VLMError where another process has it.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a", encoding="utf-8")  # noqa: SIM115 - it stays open
    except OSError as error:
        raise _bad(f"the folder {folder.name!r:.40} cannot be used: {error.strerror}; give another out") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise _bad(
            f"another run is writing to {folder.name!r:.40}; wait for it or stop it, or give another out"
        ) from None
    return file


def open_folder(folder: Path, config: TrainConfig, facts: dict) -> None:
    """Make the folder of a run and write down its settings, and `facts` about its data, if it is new.

    Raises: VLMError where it holds a run of other settings, or cannot be written to.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config) | facts))
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, (json.dumps(settings, indent=2) + "\n").encode())
        before = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad(f"the folder {folder.name!r:.40} cannot be used: {error.strerror}; give another out") from None
    except ValueError:
        raise _bad(f"{SETTINGS} in {folder.name!r:.40} is no JSON; remove it, or give another out") from None
    changed = [name for name in settings if name not in MAY_CHANGE and settings[name] != before.get(name)]
    if changed:
        raise _bad(
            f"the run in {folder.name!r:.40} was begun with other settings of {', '.join(changed)!s:.100}; "
            "set them back to go on, or give another out"
        )


def _bad(message: str) -> VLMError:
    return VLMError("invalid_request", message)
