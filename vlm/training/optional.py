"""Libraries that only some runs need."""

import importlib
from types import ModuleType

from vlm.errors import VLMError


def needed(name: str, purpose: str) -> ModuleType:
    """Return the module `name`. Raises: VLMError that says what to install where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise VLMError(
            "invalid_request",
            f"{purpose} need the package {name.partition('.')[0]}, which is not installed; "
            "install it with: pip install 'sightline-vlm[train]'",
        ) from None
