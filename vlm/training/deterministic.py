"""Runs that repeat themselves bit for bit on a GPU too, where torch's fastest algorithms add up in any order."""

import contextlib
import os
from collections.abc import Iterator

import torch

from vlm.errors import VLMError

WORKSPACE = ":4096:8"
"""Of the two with which cuBLAS repeats itself the faster. Source: NVIDIA, cuBLAS, section "Results Reproducibility"."""


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Have torch take only algorithms that give the same bits every time, if `wanted`.

    Raises: VLMError where it has none for an operation.
    """
    if not wanted:
        yield
        return
    # cuBLAS reads it at its first product, which has not been when a program begins with a run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms(True)" not in str(error):
            raise
        found, fix = str(error).partition(", but")[0], "set deterministic = false, or compute on another device"
        if "CUBLAS_WORKSPACE_CONFIG" in str(error):
            found = "cuBLAS was begun with another CUBLAS_WORKSPACE_CONFIG, or none"
            fix = f"set it to {WORKSPACE} before the program starts, or deterministic = false"
        raise VLMError(
            "invalid_request", f"deterministic is true and torch cannot compute this so: {found!s:.150}; {fix}"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
