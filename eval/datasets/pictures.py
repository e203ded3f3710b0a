"""Pictures as a data set holds them: references that are read later, and what can be seen to be wrong without decoding.

A picture that is missing or no picture is the problem of its sample, never of the run. What only decoding shows (a
truncated file, too many pixels) is found by the model that reads it, and becomes an error record there.
"""

import hashlib
import os
from typing import NamedTuple

from eval.records import ImageRef

_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
"""How files of PNG, JPEG, GIF, BMP and TIFF begin."""
_HEAD_SIZE = 64
LFS_POINTER = b"version https://git-lfs"
"""How a file begins whose content Git LFS has not fetched."""


class Picture(NamedTuple):
    """A picture of a row, or why there is none."""

    ref: ImageRef | None
    problem: str | None = None


def picture_at(folder: str | os.PathLike[str], name: str) -> Picture:
    """Return the picture in a file of `folder`; `name` is its id, and what messages call it."""
    # No Path is made: a hundred thousand pictures are looked at before the first question.
    path = os.path.join(folder, name)
    ref = ImageRef(id=name, path=path)
    try:
        # A pipe is not waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            head = os.read(descriptor, _HEAD_SIZE)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        missing = isinstance(error, FileNotFoundError)
        return Picture(ref, f"image file {name[:80]!r} {'is missing' if missing else 'cannot be read'}")
    return Picture(ref, _problem(head, f"image file {name[:80]!r}"))


def content_problem(content: bytes | memoryview, place: str) -> str | None:
    """Return what is wrong with the beginning of a picture, or None."""
    return _problem(bytes(content[:_HEAD_SIZE]), f"the image in {place}")


def digest(content: bytes | memoryview) -> str:
    """Return the id of a picture that has no name: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def _problem(head: bytes, what: str) -> str | None:
    if not head:
        return f"{what} is empty"
    if head.startswith(LFS_POINTER):
        return f"{what} is a pointer of Git LFS; fetch it with `git lfs pull`"
    is_webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    is_avif_or_heif = head[4:8] == b"ftyp"  # which some models take
    return None if head.startswith(_BEGINNINGS) or is_webp or is_avif_or_heif else f"{what} is no picture"
