"""A tokenizer's file, read and written as a whole or not at all."""

import os
from pathlib import Path

from vlm.errors import VLMError, shown
from vlm.tokenizer_files.refusal import clip, invalid

MAX_FILE_BYTES = 128 * 2**20


def checked_path(path: object, kind: str = "file or folder") -> Path:
    """Return `path` as a path. Raises VLMError for what is none; an empty text would be the current folder."""
    if not isinstance(path, str | os.PathLike) or path == "" or "\0" in str(path):
        raise VLMError("invalid_request", f"the {kind} is {shown(path)}; give the path of a {kind}")
    return Path(path)


def read_file(path: str | os.PathLike) -> bytes:
    """Return the content of a file of at most 128 MiB."""
    path = checked_path(path)
    if not path.is_file():
        raise invalid(f"{clip(path.name)} is no file", "a tokenizer file", "check the path")
    num_bytes = path.stat().st_size
    if num_bytes > MAX_FILE_BYTES:
        raise invalid(f"{clip(path.name)} has {num_bytes} bytes", f"at most {MAX_FILE_BYTES}")
    return path.read_bytes()


def write_whole(path: Path, content: bytes):
    """Write a file beside its place and move it there once it is on the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
