"""The folder of a run, and what the run in it is: it can only be gone on with, never turned into another."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import IO

from vlm.errors import VLMError
from vlm.tokenizer_files.disk import write_whole
from vlm.training.config import TrainConfig
from vlm.training.data.batches import StepBatches

logger = logging.getLogger(__name__)

SETTINGS, LOCK = "settings.json", "lock"
MAY_CHANGE = (
    "out", "checkpoints", "parallel", "micro_batch_size", "device", "recompute", "workers", "max_bad_steps",
    "log_every", "export_dtype", "samples", "tensorboard", "pack", "deterministic",
)  # fmt: skip
"""Settings that a run may be taken up with other values of; all others would make it another run."""
FACTS = ("num_samples", "digests")
"""What stands beside the settings: how many samples each source has, and the digest of its files."""


def lock_folder(folder: Path) -> IO[str]:
    """Return a file that, as long as it is open, keeps other processes from running in `folder`, which is made.

    The kernel lets go of it with the process, however that ends. Raises: VLMError where another process has it.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a", encoding="utf-8")  # noqa: SIM115 - it stays open
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise _bad(
            f"another run is writing to {folder.name!r:.40}; wait for it or stop it, or give another out"
        ) from None
    return file


def settings_of(config: TrainConfig, data: StepBatches) -> dict:
    """Return what a run is, as it stands in its folder: its settings, and what tells its data from other data."""
    facts = {"num_samples": data.order.sizes, "digests": [source.digest for source in data.sources]}
    return json.loads(json.dumps(dataclasses.asdict(config) | facts))


def check_settings(folder: Path, settings: dict) -> None:
    """See that the run in `folder`, if there is one, is that of `settings`.

    Raises: VLMError where it has other settings or other data, or cannot be read.
    """
    before = _kept(folder)
    if before is None:
        return
    changed = [name for name in settings if name not in (*MAY_CHANGE, *FACTS) and settings[name] != before.get(name)]
    if changed:
        raise _bad(
            f"the run in {folder.name!r:.40} was begun with other settings of {', '.join(changed)!s:.100}; "
            "set them back to go on, or give another out"
        )
    if "digests" not in before:
        _check_old(folder, settings)
        return
    for source, found, expected in zip(settings["data"], settings["digests"], before["digests"], strict=True):
        if found != expected:
            raise _bad(
                f"{Path(source['path']).name!r:.60} has changed since the run in {folder.name!r:.40} was begun: its "
                f"digest is {found:.8}…, expected {expected:.8}…; put its files back to go on, or give another out"
            )
    if settings["num_samples"] != before["num_samples"]:
        raise _bad(
            f"the filters leave {settings['num_samples']!s:.40} samples, expected {before['num_samples']!s:.40} as in "
            f"the beginning of the run in {folder.name!r:.40}; install the libraries of then, or give another out"
        )


def keep_settings(folder: Path, settings: dict) -> None:
    """Write down what the run in `folder` is, if it is new. Raises: VLMError where that cannot be written."""
    before = _kept(folder) or {}
    if settings.keys() <= before.keys():
        return
    try:
        write_whole(folder / SETTINGS, (json.dumps(settings | before, indent=2) + "\n").encode())
    except OSError as error:
        raise _unusable(folder, error) from None


def _kept(folder: Path) -> dict | None:
    """Return what the run in `folder` is; None if it is new."""
    try:
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(folder, error) from None
    except ValueError:
        raise _bad(f"{SETTINGS} in {folder.name!r:.40} is no JSON; remove it, or give another out") from None


def _check_old(folder: Path, settings: dict) -> None:
    """Let a run go on that was begun before 2026-11-27, when data was not looked at, unless its order was another."""
    sources = settings["data"]
    if len(sources) > 1 and all(source["weight"] is None for source in sources):
        raise _bad(
            f"the run in {folder.name!r:.40} was begun by an earlier version, which drew from sources without weights "
            "at random; go on with that version, or give another out"
        )
    logger.warning(
        "the run in %s was begun by an earlier version, which did not note its data; it goes on, and is taken to have "
        "the data that is there now",
        folder.name,
    )


def _unusable(folder: Path, error: OSError) -> VLMError:
    return _bad(f"the folder {folder.name!r:.40} cannot be used: {error.strerror}; give another out")


def _bad(message: str) -> VLMError:
    return VLMError("invalid_request", message)
