"""The manifest: everything that defines a run, and whether a run that is to go on is still the same one."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vlm.errors import VLMError

FORMAT = 4
LIBRARIES = ("sightline-vlm", "torch", "numpy", "pillow", "einops", "safetensors", "tiktoken")
"""Those that shape an answer."""
FREE = frozenset({"command", "created", "data", "batch_size"})
"""What may differ when a run goes on: the samples are compared by what they say, wherever they lie."""
_SHOWN_CHARS = 60


class Difference(NamedTuple):
    """A field of the manifest that is not what it was."""

    field: str
    found: object
    """What this run has."""
    expected: object
    """What the folder was begun with."""

    def __str__(self) -> str:
        return f"{self.field}: found {_shown(self.found)}, expected {_shown(self.expected)}"


class RunDiffers(VLMError):
    """The folder holds another run."""

    def __init__(self, differences: Sequence[Difference]):
        self.differences = list(differences)
        names = ", ".join(difference.field for difference in differences[:6])
        more = f" and {len(differences) - 6} more" if len(differences) > 6 else ""
        super().__init__(
            "invalid_request",
            f"the folder holds another run; these differ: {names}{more}; give another --out, or --new-run, which moves "
            "the earlier answers aside",
        )


def libraries() -> dict[str, str]:
    """Return the versions of Python and of the libraries that shape an answer."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def new_manifest(*, command: Sequence[str], **defining: object) -> dict:
    """Return a manifest of `defining`, dated now."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"format": FORMAT, "created": created, "command": list(command), **defining, "libraries": libraries()}


def check_same(found: dict, expected: dict) -> None:
    """Raise RunDiffers, naming every field, unless `found` may go on with what `expected` began."""
    differences = list(_differences(found, expected))
    if differences:
        raise RunDiffers(differences)


def _differences(found: object, expected: object, prefix: str = "") -> Iterator[Difference]:
    if not isinstance(found, dict) or not isinstance(expected, dict):
        if found != expected:
            yield Difference(prefix, found, expected)
        return
    for name in sorted(found.keys() | expected.keys()):
        if prefix or name not in FREE:
            yield from _differences(found.get(name), expected.get(name), f"{prefix}.{name}" if prefix else name)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
