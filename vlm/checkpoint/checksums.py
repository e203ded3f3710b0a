"""SHA-256 of the files of a checkpoint: the only way to notice a flipped bit inside a weight."""

import hashlib
import re
from contextlib import closing
from pathlib import Path

from vlm.checkpoint.files import invalid, open_file

MANIFEST = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Write the manifest of every file of `folder`, in the format of sha256sum."""
    folder = Path(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    lines = [f"{_sha256(folder, name)}  {name}\n" for name in names]
    (folder / MANIFEST).write_text("".join(lines))


def verify_checksums(folder: Path) -> int:
    """Return how many files of `folder` match its SHA256SUMS.

    Raises VLMError that names every file that does not, or where there is no manifest.
    """
    folder = Path(folder)
    with closing(open_file(folder, MANIFEST)) as file:
        lines = file.read().decode("utf-8", "replace").splitlines()
    entries = [re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line) for line in lines if line.strip()]
    if not entries or not all(entries):
        raise invalid(f"{MANIFEST} of {folder.name} is not in the format of sha256sum; write it with `sha256sum *`")
    bad = [entry[2] for entry in entries if _sha256(folder, entry[2]) != entry[1].lower()]
    if bad:
        raise invalid(
            f"{len(bad)} files of {folder.name} differ from {MANIFEST}; download them again: {', '.join(bad)}"
        )
    return len(entries)


def _sha256(folder: Path, name: str) -> str:
    with closing(open_file(folder, name)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
