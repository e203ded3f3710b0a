"""Packages that only some uses need: imported where they are wanted, and named where they are missing."""

import importlib
from types import ModuleType

from vlm.errors import VLMError

_ON_PYPI = {"yaml": "pyyaml"}


def needed(name: str, purpose: str) -> ModuleType:
    """Return the module `name`. Raises: VLMError that says what needs it, and how to install it, where it is missing.

    purpose: what needs it, one thing, as "a language filter".
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing(purpose, name.partition(".")[0]) from None


def missing(purpose: str, *modules: str) -> VLMError:
    """Return the error for modules of packages that are not installed; for `purpose` see `needed`."""
    packages = [_ON_PYPI.get(module, module).replace("_", "-") for module in modules]
    are = "is" if len(packages) == 1 else "are"
    return VLMError(
        "invalid_request",
        f"{purpose} needs {', '.join(packages)}, which {are} not installed; run: pip install {' '.join(packages)}",
    )
