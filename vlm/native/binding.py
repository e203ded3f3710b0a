"""The C functions, built once and called through ctypes."""

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

TILE = 16
_FOLDER = Path(__file__).parent
_FLAGS = (
    "-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-fopenmp", "-shared", "-fPIC",
    "-Wl,-Bsymbolic",  # no other library's function of the same name is called
)  # fmt: skip
# Bytes from which large pages are asked for: two of them.
_LARGE = 1 << 22
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}
_ARGUMENTS = {
    "large_pages": "pn",
    "product": "ppnpn",
    "rms_norm": "pppnnd",
    "gated": "ppnnn",
    "rotate": "pppnnnnnn",
    "attend_one": "pppnnnnn",
    "decode_step": "ppnppnnnppdn",
    "read_all": "pnn",
}


class NativeWeights(NamedTuple):
    """How the weights of one linear layer lie in memory, as `products.c` reads them."""

    kind: tuple[int, int, int]
    """(bits, columns of x that share a scale, whether each such group of weights has one): equal where weights can be
    multiplied side by side. (16, 0, 0) is bfloat16."""
    places: tuple[int, int, int, int]
    """Where codes, scales and zero points are, and how many rows there are."""


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
    logger.warning("vlm/native is not in use: %s; torch's own products serve instead, which read slower", why)
    return None


def is_plain(x: Tensor) -> bool:
    """Return whether x is bfloat16 on the CPU, and not what only stands for a tensor: one that is shared among
    processes, or traced."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def in_large_pages(x: Tensor) -> Tensor:
    """Return x, which was not written yet, with large pages asked for where it is large and not float32."""
    # Float32 is torch's alone: nothing is built for it.
    fits = type(x) is Tensor and x.device.type == "cpu" and x.dtype != torch.float32 and x.nbytes >= _LARGE
    if fits and (functions := library()) is not None:
        functions.large_pages(x.data_ptr(), x.nbytes)
    return x


def product_table(cols: int, weights: Sequence[NativeWeights]) -> array | None:
    """Return what `products.c` calls a Product, of weights with `cols` columns; None where they are of several kinds.

    It holds places of memory: it is good as long as the weights stay where they are.
    """
    kind = weights[0].kind
    if any(each.kind != kind for each in weights):
        return None
    table = array("q", (cols, sum(each.places[3] for each in weights), *kind))
    for each in weights:
        table.extend(each.places)
    return table


def product(x: Tensor, weights: Sequence[NativeWeights]) -> Tensor | None:
    """Return x [..., in] in bfloat16 times weights, one beside the other; None where they are of several kinds.

    In bfloat16 x has at most MAX_ROWS rows.
    """
    x, cols = x.contiguous(), x.shape[-1]
    if (table := product_table(cols, weights)) is None:
        return None
    rows, out = x.numel() // cols, x.new_empty(*x.shape[:-1], table[1])
    place = table.buffer_info()[0]
    if library().product(x.data_ptr(), out.data_ptr(), rows, place, torch.get_num_threads()):
        raise MemoryError(f"no memory for {rows} rows")
    return out


def _built() -> Path:
    """Return the library, built once for each version of its sources and kept among the user's caches."""
    sources = sorted(_FOLDER.glob("*.c"))
    text = b"".join(path.read_bytes() for path in (*sources, _FOLDER / "common.h"))
    name = hashlib.sha256(text + repr(_FLAGS).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline"
    built = folder / f"native-{name}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            fresh = Path(staging) / built.name
            command = ["gcc", *_FLAGS, "-o", fresh, *sources]
            subprocess.run(command, check=True, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
            # In one step, for another process may be building it too.
            fresh.replace(built)
    return built
