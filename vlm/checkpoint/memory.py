"""Whether a model fits the memory that is free, before the first weight is read."""

from pathlib import Path

import torch
from torch import Tensor

from vlm.errors import VLMError


def check_memory(shapes: dict[str, Tensor], dtype: torch.dtype, device: torch.device | str) -> None:
    """Raise VLMError where the weights cannot fit; better than being killed halfway."""
    if torch.device(device).type != "cpu":
        return
    # Whole numbers are quantised weights, which stay as they are.
    needed = sum(
        tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize for tensor in shapes.values()
    )
    free = _free_bytes()
    if free is not None and needed > free:
        raise VLMError(
            "device_unavailable",
            f"the weights need {needed / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')} and {free / 1e9:.1f} GB of "
            'memory are free; give a smaller dtype, quantize="int8" or "int4", another device or a smaller model',
        )


def _free_bytes() -> int | None:
    """Return what this process can still take: the machine's free memory or its group's limit; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(counts["file"])  # the page cache gives way
    except (OSError, ValueError, KeyError):
        return free
    return min(free, max(limit - used, 0))
