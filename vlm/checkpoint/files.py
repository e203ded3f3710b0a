"""The one gate by which files of a checkpoint folder are opened: regular files inside the folder, strict JSON."""

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vlm.errors import VLMError

# A table of 30,000 tensors. Parsed JSON takes up to thirty times its text in memory.
MAX_JSON_BYTES = 4 << 20


def invalid(message: str) -> VLMError:
    """Return the error of a checkpoint that cannot be used."""
    return VLMError("checkpoint_invalid", message)


def find_file(folder: Path, name: str) -> Path:
    """Return the real path of the regular file `name` of `folder`, without opening it.

    Links are followed inside the folder, and from a snapshot of the Hub's cache into the blobs of its repository.
    Raises VLMError for anything else: other folders, devices, pipes, nothing at all.
    """
    if not name or name in (".", "..") or any(character in name for character in "/\\\0:"):
        raise invalid(f"{folder.name} names the file {name!r:.80}; expected a plain name of a file in that folder")
    try:
        path = (folder / name).resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError):
        raise invalid(f"{name} cannot be found in {folder.name}; download the checkpoint again, whole") from None
    if not any(path.is_relative_to(root) for root in _roots(folder)):
        raise invalid(f"{name} in {folder.name} is a link to a place outside the folder; put the file itself there")
    if not stat.S_ISREG(mode):
        raise invalid(f"{name} in {folder.name} is no regular file; put the weights or settings there as a file")
    return path


def open_file(folder: Path, name: str) -> BinaryIO:
    """Open the regular file `name` of `folder` for unbuffered reading; see `find_file`."""
    path = find_file(folder, name)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = open(path, "rb", buffering=0, opener=lambda target, _: os.open(target, flags))  # noqa: SIM115
    except OSError as error:
        raise invalid(f"{name} in {folder.name} cannot be opened: {error.strerror}; check its permissions") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise invalid(f"{name} in {folder.name} is no regular file; put the weights or settings there as a file")
    return file


def read_json(folder: Path, name: str) -> dict:
    """Return the JSON object in the file `name` of `folder`."""
    with contextlib.closing(open_file(folder, name)) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > MAX_JSON_BYTES:
            raise invalid(f"{name} has {num_bytes:,} bytes; expected at most {MAX_JSON_BYTES:,} of JSON")
        return parse_json(file.read(MAX_JSON_BYTES), name)


def parse_json(text: bytes, name: str) -> dict:
    """Return the JSON object in `text`, refusing keys given twice and numbers that JSON does not know."""
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise invalid(f"{name} nests its JSON too deeply; download it again") from None
    except UnicodeDecodeError:
        raise invalid(f"{name} is no valid JSON (not in UTF-8); download it again") from None
    except ValueError as error:
        raise invalid(f"{name} is no valid JSON ({error!s:.90}); download it again") from None
    if not isinstance(parsed, dict):
        raise invalid(f"{name} holds a JSON {type(parsed).__name__}; expected an object with named values")
    return parsed


def _roots(folder: Path) -> list[Path]:
    """The folders that files of `folder` may live in."""
    real = folder.resolve()
    for parent in real.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return [real, parent.parent / "blobs"]
    return [real]


def _once(pairs: list[tuple[str, object]]) -> dict:
    result: dict = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"key {name!r:.60} stands twice")
        result[name] = value
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
