"""What a measurement was made on."""

import platform
from pathlib import Path

import torch


def hardware() -> str:
    """Return the name of the GPU, or of the processor where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def processor() -> str:
    """Return the processor's name and its number of cores; Linux tells more of it than `platform` does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def peak_bytes(pid: int | str = "self") -> int:
    """Return the most memory that a process ever held, mapped files counted; 0 where the system does not tell."""
    # Not `ru_maxrss`, which a child process takes over from its parent.
    return _status_bytes(pid, "VmHWM")


def resident_bytes(pid: int | str = "self") -> int:
    """Return the memory that a process holds, mapped files counted; 0 where the system does not tell."""
    return _status_bytes(pid, "VmRSS")


def _status_bytes(pid: int | str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
