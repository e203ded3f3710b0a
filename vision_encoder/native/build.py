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
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

logger = logging.getLogger(__name__)

_SHARED = Path(__file__).parent
"""Headers that the sources of other folders include."""
_FLAGS = (
    "-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mfma", "-fopenmp", "-shared", "-fPIC",
    "-Wl,-Bsymbolic",  # no other library's function of the same name is called
)  # fmt: skip
PLAIN = (Tensor, nn.Parameter)
"""Tensors that are memory and nothing else. Subclasses may be spread over processes or compute in ways of their own."""
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}


def load(folder: Path, flags: tuple[str, ...], arguments: Mapping[str, str], *, needs: str) -> ctypes.CDLL | None:
    """Return the functions built of the sources in `folder`; None, and say why, where they cannot be had.

    `arguments` has for each function a letter an argument: p a place in memory, n a whole number, d a float. `needs`
    is what torch calls the capability of a processor that the `flags` ask for.
    """
    if not torch.cpu.get_capabilities().get(needs):
        why = f"this processor has no {needs}"
    else:
        try:
            found = ctypes.CDLL(str(_built(folder, flags)))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            # No gcc, no home, no room: whatever it is, there is another way.
            why = f"gcc could not build it and keep it in ~/.cache ({type(error).__name__})"
        else:
            for name, kinds in arguments.items():
                getattr(found, name).argtypes = [_KINDS[kind] for kind in kinds]
            return found
    name = "/".join(folder.parts[-2:])
    logger.warning("%s is not in use: %s; torch's own functions serve instead, which take longer", name, why)
    return None


def is_plain(x: Tensor) -> bool:
    """Return whether x is bfloat16 on the CPU, and neither shared among processes nor looked at by who records or
    transforms what torch does."""
    if type(x) not in PLAIN or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return False
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    return not recorded and not torch._C._functorch.is_functorch_wrapped_tensor(x)


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
