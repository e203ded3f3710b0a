"""Times of functions that are run in turn, so that what disturbs one disturbs all; and what they ran on."""

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from vlm.machine import processor

Call = Callable[[], object]


def seconds(calls: Mapping[str, Call], *, windows: int = 7, window_s: float = 0.2) -> dict[str, float]:
    """Return the median seconds of a call of each function: `windows` short windows of each, taken in turn."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(windows):
        for name, call in calls.items():
            count, start = 0, time.perf_counter()
            while count == 0 or time.perf_counter() - start < window_s:
                call()
                count += 1
            found[name].append((time.perf_counter() - start) / count)
    return {name: statistics.median(values) for name, values in found.items()}


def machine() -> dict[str, object]:
    """Return the processor, its threads, and the versions of what computes."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("sightline-vlm", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"processor": processor(), "threads": torch.get_num_threads(), "versions": versions}
