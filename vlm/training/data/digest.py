"""What tells whether the files of a source are still those that a run was begun with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

MAX_BYTES = 2**30
"""What is read of a source at most: a second or two, whatever its size."""
STRETCH_BYTES = 2**16


def digest_files(paths: Sequence[Path]) -> str:
    """Return 32 hexadecimal digits that change with what is in the files, or with their order, and not with names.

    Files are read whole up to `MAX_BYTES` together. Of larger ones go in their sizes, and stretches at equal distances
    from the first byte to the last: what is changed in place between two of them goes unseen.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "big"))
        with open(path, "rb") as file:
            for start in _starts(size, MAX_BYTES // len(paths)):
                file.seek(start)
                digest.update(file.read(STRETCH_BYTES))
    return digest.hexdigest()


def _starts(size: int, share: int) -> Sequence[int]:
    """Return where the stretches begin that are read of a file of `size` bytes, `share` of them or a little more."""
    if size <= max(share, 2 * STRETCH_BYTES):
        return range(0, size, STRETCH_BYTES)
    count = max(2, share // STRETCH_BYTES)
    return [place * (size - STRETCH_BYTES) // (count - 1) for place in range(count)]
