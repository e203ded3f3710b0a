"""What torch does slowly on the CPU, in C: `native.c`, built with gcc the first time it is wanted.

Without gcc, or on a processor without AVX-512 VNNI, torch's own products serve, and that is said once.
"""

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

logger = logging.getLogger(__name__)

# Rows of x up to which ours are sooner done than torch's.
MAX_ROWS = 4
_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-fopenmp", "-shared", "-fPIC")
_TILE = 16
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}
_ARGUMENTS = {
    "large_pages": "pn",
    "quantized_product": "ppnnnnnnpppn",
    "dense_product": "ppnnnpn",
    "rms_norm": "pppnnd",
    "attend_one": "ppppnnnnnnn",
    "read_all": "pnn",
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the built functions; None, and say why once, where they cannot be had."""
    try:
        found = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        why = f"gcc did not build it ({type(error).__name__})"
    else:
        for name, kinds in _ARGUMENTS.items():
            getattr(found, name).argtypes = [_KINDS[kind] for kind in kinds]
        if found.usable():
            return found
        why = "this processor has no AVX-512 VNNI"
    logger.warning("vlm/native.c is not in use: %s; torch's own products serve instead, which read slower", why)
    return None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [..., in] times weight [out, in]."""
    num_out, cols = weight.shape
    functions = (
        _functions_for(x, weight) if num_out % _TILE == 0 and cols % 32 == 0 and weight.is_contiguous() else None
    )
    if functions is None:
        return functional.linear(x, weight)
    x = x.contiguous()
    out, rows = x.new_empty(*x.shape[:-1], num_out), x.numel() // cols
    threads = torch.get_num_threads()
    if functions.dense_product(x.data_ptr(), out.data_ptr(), rows, cols, num_out, weight.data_ptr(), threads):
        raise MemoryError(f"no memory for {rows} rows")
    return out


class Linear(nn.Linear):
    """torch's linear layer without a bias."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return linear(x, self.weight)


class RMSNorm(nn.RMSNorm):
    """torch's norm over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to the same shape."""
        (cols,) = self.normalized_shape
        functions = _functions_for(x, self.weight) if cols % _TILE == 0 else None
        if functions is None:
            return super().forward(x)
        x = x.contiguous()
        out = torch.empty_like(x)
        functions.rms_norm(x.data_ptr(), self.weight.data_ptr(), out.data_ptr(), x.numel() // cols, cols, self.eps)
        return out


def attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """Return [1, h, 1, e] for one position's queries over all keys and values [1, g, l, e]; None where torch has to."""
    _, groups, length, width = k.shape
    dense = (k.stride(2), k.stride(3), v.stride(2), v.stride(3)) == (width, 1, width, 1)
    functions = _functions_for(q[0, 0], k) if len(q) == 1 and q.shape[2] == 1 and width % 32 == 0 and dense else None
    if functions is None:
        return None
    q = q.contiguous()
    out = torch.empty_like(q)
    if functions.attend_one(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), groups, q.shape[1] // groups, length, width,
        k.stride(1), v.stride(1), torch.get_num_threads(),
    ):  # fmt: skip
        raise MemoryError(f"no memory for the scores of {length} keys")
    return out


def _functions_for(x: Tensor, weight: Tensor) -> ctypes.CDLL | None:
    """Return the functions where they serve for a product or norm of x: few rows in bfloat16, without gradients."""
    if (
        0 < x.numel() <= MAX_ROWS * x.shape[-1]
        # Not what only stands for a tensor: one that is shared among processes, or traced.
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.dtype == weight.dtype == torch.bfloat16
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        return library()
    return None


def _built() -> Path:
    """Return the library, built once for each version of its source and kept among the user's caches."""
    name = hashlib.sha256(_SOURCE.read_bytes() + repr(_FLAGS).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline"
    built = folder / f"native-{name}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            fresh = Path(staging) / built.name
            command = ["gcc", *_FLAGS, "-o", fresh, _SOURCE]
            subprocess.run(command, check=True, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
            # In one step, for another process may be building it too.
            fresh.replace(built)
    return built
