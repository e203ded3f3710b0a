"""JSON that somebody else wrote: what is none becomes an error that names the place."""

import json
from pathlib import Path

import msgspec

from eval.datasets.row import damaged


def parse_json(path: Path, content: bytes, expected: str, *, line: int | None = None) -> object:
    """Return what `content`, all of a file or the given line of it, says.

    Raises: VLMError naming file, line as row and character as column.
    """
    try:
        return msgspec.json.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    # In several times the time; it says what is wrong, and takes NaN and halves of surrogate pairs.
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise damaged(path, line or error.lineno, str(error.colno), f"no JSON ({error.msg})", expected) from None
    except (ValueError, RecursionError):
        raise damaged(path, line or 1, "1", "bytes that are no JSON in UTF-8", expected) from None
