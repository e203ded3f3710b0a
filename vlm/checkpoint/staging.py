"""All or nothing: files are written beside the folder they are for and moved in when every one is on the disk."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm.errors import VLMError


@contextmanager
def staged(folder: Path, *, last: Iterable[str] = (), stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yield an empty folder to write into; leaving it moves its files into `folder`, an error leaves no trace.

    A new folder appears whole, in one step. In a folder that exists each file is replaced in one step: those named
    in `last`, without which nothing can be read, go first and come back last; those named in `stale` that were not
    written now are removed.

    Raises VLMError where the disk is full or nothing may be written there.
    """
    folder = Path(folder).absolute()
    staging = None
    try:
        is_new = not folder.exists()
        beside = folder.parent if is_new else folder
        beside.mkdir(parents=True, exist_ok=True)
        staging = beside / f".saving-{secrets.token_hex(8)}"
        staging.mkdir()
        yield staging
        names = sorted(path.name for path in staging.iterdir())
        names.sort(key=lambda name: name in last)
        for name in names:
            _flush(staging / name)
        _flush(staging)
        if is_new:
            staging.rename(folder)
            staging = None
        else:
            _move(staging, names, folder, last, stale)
        _flush(beside)
    except OSError as error:
        raise VLMError(
            "checkpoint_invalid",
            f"nothing was saved in {folder.name}: {error.strerror or type(error).__name__}; "
            "free some space, or give a folder that you may write to",
        ) from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _move(staging: Path, names: list[str], folder: Path, last: Iterable[str], stale: Iterable[str]) -> None:
    # Without its settings a folder is no checkpoint: killed in here, it is refused rather than half old, half new.
    for name in last:
        (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(staging / name, folder / name)
    for name in set(stale) - set(names):
        (folder / name).unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
