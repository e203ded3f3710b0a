"""A folder of C sources, built once and loaded through ctypes."""

import ctypes
import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_SHARED = Path(__file__).parent
"""Headers that the sources of other folders include."""
_FLAGS = (
    "-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mfma", "-fopenmp", "-shared", "-fPIC",
    "-Wl,-Bsymbolic",  # no other library's function of the same name is called
)  # fmt: skip
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}


def load(folder: Path, flags: tuple[str, ...], arguments: Mapping[str, str], needs: str) -> ctypes.CDLL | None:
    """Return the functions built of the sources in `folder`; None, and say why, where they cannot be had.

    `arguments` has for each function a letter an argument: p a place in memory, n a whole number, d a float. The
    function `usable` tells whether the processor has what the `flags` ask for, which is called `needs`.
    """
    try:
        found = ctypes.CDLL(str(_built(folder, flags)))
    except (OSError, subprocess.SubprocessError) as error:
        why = f"gcc did not build it ({type(error).__name__})"
    else:
        for name, kinds in arguments.items():
            getattr(found, name).argtypes = [_KINDS[kind] for kind in kinds]
        if found.usable():
            return found
        why = f"this processor has no {needs}"
    name = "/".join(folder.parts[-2:])
    logger.warning("%s is not in use: %s; torch's own functions serve instead, which take longer", name, why)
    return None


def is_plain(x: Tensor) -> bool:
    """Return whether x is bfloat16 on the CPU, and not what only stands for a tensor: one that is shared among
    processes, or traced."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _built(folder: Path, flags: tuple[str, ...]) -> Path:
    """Return the library, built once for each version of its sources and kept among the user's caches."""
    sources, flags = sorted(folder.glob("*.c")), (*_FLAGS, *flags)
    headers = sorted({*folder.glob("*.h"), *_SHARED.glob("*.h")})
    text = b"".join(path.read_bytes() for path in (*sources, *headers))
    name = hashlib.sha256(text + repr(flags).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline"
    built = cache / f"native-{name}.so"
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as staging:
            fresh = Path(staging) / built.name
            command = ["gcc", *flags, "-I", _SHARED, "-o", fresh, *sources, "-lm"]
            subprocess.run(command, check=True, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
            # In one step, for another process may be building it too.
            fresh.replace(built)
    return built
