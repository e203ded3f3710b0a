"""Digests of pictures by their encoded bytes, which decide the pixels.

A run of a hundred thousand pictures is gone on with in seconds: what a file had as its digest is kept beside the log,
with what the system says of the file (size, times, number), and read again only where that is no longer the same. The
notes may be deleted at any time.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from eval.records import ImageRef
from vlm.errors import VLMError

MAX_KNOWN = 4096
SUFFIX = ".digests"
_SETTLED_NS = 2 * 10**9
"""A file that was changed less than this before it was read could change again under the same times."""
_NOTE = re.compile(r"^([0-9a-f]{64})\t(.+)\n", re.MULTILINE)


class ImageDigests:
    """Looks digests up, or reads the pictures; those met last are remembered, those of files noted down."""

    def __init__(self, notes: Iterable[Path] = (), *, own: Path | None = None):
        """notes: files of such notes that are believed. own: where new ones are added; None keeps none."""
        self._known: dict[object, str] = {}
        self._noted: dict[str, str] = {}
        for path in notes:
            self._read(path)
        self._file = None
        if own is not None:
            with suppress(OSError):  # without notes pictures are read again
                self._file = open(own, "ab", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Close the file of notes."""
        if self._file is not None:
            self._file.close()

    def of(self, image: ImageRef) -> str:
        """Return the digest of `image`; of one that cannot be read, why."""
        if image.digest is not None:
            return image.digest  # reading it out of a large file again would take long
        # Not a Path itself, which would keep what it is hashed by.
        name = (image.id,) if image.path is None else os.fspath(image.path)
        if name in self._known:
            return self._known[name]
        try:
            found = hashlib.sha256(image.read()).hexdigest() if image.path is None else self._of_file(image)
        except VLMError as error:
            return f"unreadable: {error.code}"
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[name] = found
        return found

    def _of_file(self, image: ImageRef) -> str:
        seen = _seen(image.path)
        if seen in self._noted:
            return self._noted[seen]
        found = hashlib.sha256(image.read()).hexdigest()
        if seen is not None and self._file is not None:
            with suppress(OSError):
                self._file.write(f"{found}\t{seen}\n".encode("ascii"))
        return found

    def _read(self, path: Path) -> None:
        with suppress(OSError):
            self._noted.update((seen, found) for found, seen in _NOTE.findall(path.read_text("ascii", "replace")))


def _seen(path: str | os.PathLike[str]) -> str | None:
    """Return what tells this state of a file from every other; None where nothing does yet."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if time.time_ns() - max(found.st_ctime_ns, found.st_mtime_ns) < _SETTLED_NS:
        return None
    place = ascii(os.fspath(path))
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_dev} {found.st_ino} {place}"
