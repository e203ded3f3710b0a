"""Whether a model fits the memory that is free, before the first weight is read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm.errors import VLMError

# What a model of weights alone needs besides: pictures on their way, keys and values, the program.
_BESIDES = 1.25


def is_short_of_memory(shapes: dict[str, Tensor], dtype: torch.dtype) -> bool:
    """Return whether weights on the CPU would leave too little memory free to be used."""
    free = free_bytes()
    return free is not None and _BESIDES * num_bytes(shapes, dtype) > free


def check_memory(shapes: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
    """Raise VLMError where the weights cannot fit; better than being killed halfway."""
    if device.type != "cpu":
        return
    needed, free = num_bytes(shapes, dtype), free_bytes()
    if free is not None and needed > free:
        raise VLMError(
            "device_unavailable",
            f"the weights need {needed / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')} and {free / 1e9:.1f} GB of "
            'memory are free; give a smaller dtype, quantize="int8" or "int4", another device or a smaller model',
        )


def num_bytes(shapes: Mapping[str, Tensor], dtype: torch.dtype) -> int:
    """Return what weights of these shapes take in `dtype`."""
    # Whole numbers are quantised weights, which stay as they are.
    return sum(
        tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize for tensor in shapes.values()
    )


def free_bytes() -> int | None:
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


def gpu_free_bytes(device: torch.device) -> int | None:
    """Return what this process can still take of a GPU's memory; None for other devices."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    # What torch keeps for tensors to come is taken over there, and a cap on this process is not known.
    free += torch.cuda.memory_reserved(device) - used
    return max(0, min(free, int(torch.cuda.get_per_process_memory_fraction(device) * total) - used))
