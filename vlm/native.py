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
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

logger = logging.getLogger(__name__)

# Rows of x up to which ours are sooner done than torch's.
MAX_ROWS = 4
# Numbers up to which our norm, by one thread, is sooner done than torch's.
_MAX_NORMALISED = 1 << 16
_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-fopenmp", "-shared", "-fPIC")
_TILE = 16
# Bytes from which large pages are asked for: two of them.
_LARGE = 1 << 22
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}
_ARGUMENTS = {
    "large_pages": "pn",
    "quantized_product": "ppnnnnnnpn",
    "dense_product": "ppnnnpn",
    "rms_norm": "pppnnd",
    "gated": "ppnnn",
    "rotate": "pppnnnnnn",
    "attend_one": "pppnnnnn",
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


def in_large_pages(x: Tensor) -> Tensor:
    """Return x, which was not written yet, with large pages asked for where it is large and not float32."""
    # Float32 is torch's alone: nothing is built for it.
    fits = type(x) is Tensor and x.device.type == "cpu" and x.dtype != torch.float32 and x.nbytes >= _LARGE
    if fits and (functions := library()) is not None:
        functions.large_pages(x.data_ptr(), x.nbytes)
    return x


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [..., in] times weight [out, in]."""
    out = dense_products(x, [weight])
    return functional.linear(x, weight) if out is None else out


def dense_products(x: Tensor, weights: Sequence[Tensor]) -> Tensor | None:
    """Return x [..., in] times weights [out, in], one beside the other; None where torch has to."""
    cols = x.shape[-1]
    for weight in weights:
        fits = weight.shape[1] == cols and len(weight) % _TILE == 0 and cols % 32 == 0 and weight.is_contiguous()
        if not fits or (functions := _functions_for(x, weight)) is None:
            return None
    x = x.contiguous()
    num_out, rows = sum(map(len, weights)), x.numel() // cols
    out = x.new_empty(*x.shape[:-1], num_out)
    table = weights_table((weight.data_ptr(), 0, 0, len(weight)) for weight in weights)
    threads = torch.get_num_threads()
    if functions.dense_product(x.data_ptr(), out.data_ptr(), rows, cols, num_out, table.buffer_info()[0], threads):
        raise MemoryError(f"no memory for {rows} rows")
    return out


def weights_table(weights: Iterable[tuple[int, int, int, int]]) -> array:
    """Return what `native.c` calls Weights, several of them: the places of codes, scales and zeros, and the rows."""
    return array("q", [number for weight in weights for number in weight])


class Linear(nn.Linear):
    """torch's linear layer without a bias."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return linear(x, self.weight)

    @staticmethod
    def side_by_side(x: Tensor, layers: "Sequence[Linear]") -> Tensor | None:
        """Return what `layers` make of x [..., in], one beside the other; None where torch has to."""
        return dense_products(x, [layer.weight for layer in layers])


def side_by_side(x: Tensor, *layers: nn.Module) -> Tensor | None:
    """Return what `layers` make of x [..., in], one beside the other, by one product; None where that is not had."""
    kind = type(layers[0])
    # What hooks add (adapters, for one) would be left out.
    alike = all(type(layer) is kind and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers)
    return kind.side_by_side(x, layers) if alike and hasattr(kind, "side_by_side") else None


def gated(x: Tensor, gate: nn.Module, up: nn.Module) -> Tensor | None:
    """Return silu(gate(x)) · up(x), rounded once; None where torch has to."""
    both = side_by_side(x, gate, up)
    if both is None:
        return None
    cols = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], cols)
    library().gated(both.data_ptr(), out.data_ptr(), out.numel() // cols, cols, torch.get_num_threads())
    return out


def rotate_in_place(x: Tensor, turned: int, cos: Tensor, sin: Tensor) -> bool:
    """Turn the first `turned` heads of x [b, s, heads, e] by angles [b or 1, 1, s, e]; False where torch has to."""
    heads, width = x.shape[2:]
    fits = width % 32 == 0 and x.is_contiguous() and _is_plain(x) and not torch.is_grad_enabled()
    if not fits or (functions := library()) is None:
        return False
    positions = cos.numel() // width
    functions.rotate(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), x.numel() // (heads * width), positions, heads, turned, width,
        torch.get_num_threads(),
    )  # fmt: skip
    return True


class RMSNorm(nn.RMSNorm):
    """torch's norm over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., d] to the same shape."""
        (cols,) = self.normalized_shape
        functions = _functions_for(x, self.weight, _MAX_NORMALISED // cols) if cols % _TILE == 0 else None
        if functions is None:
            return super().forward(x)
        x = x.contiguous()
        out = torch.empty_like(x)
        functions.rms_norm(x.data_ptr(), self.weight.data_ptr(), out.data_ptr(), x.numel() // cols, cols, self.eps)
        return out


def attend_one(q: Tensor, k: Tensor, v: Tensor, scales: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
    """Return [1, h, 1, e] for one position's queries over all keys and values [1, g, l, e]; None where torch has to.

    `scales` [1, g, l] are those of keys and of values in int8.
    """
    _, groups, length, width = k.shape
    dense = all(x.stride()[2:] == (width, 1) for x in (k, v)) and all(scale.stride(2) == 1 for scale in scales or ())
    wide = width % 32 == 0 if scales is None else width % 64 == 0 and width <= 256
    fits = len(q) == 1 and q.shape[2] == 1 and wide and dense
    functions = _functions_for(q[0, 0], k if scales is None else scales[0]) if fits else None
    if functions is None:
        return None
    q = q.contiguous()
    out = torch.empty_like(q)
    # What `native.c` calls Vectors, of the keys and of the values.
    table = array("q")
    for x, scale in zip((k, v), scales or (None, None), strict=True):
        table.extend((x.data_ptr(), x.stride(1) * x.itemsize))
        table.extend((0, 0) if scale is None else (scale.data_ptr(), scale.stride(1)))
    if functions.attend_one(
        q.data_ptr(), table.buffer_info()[0], out.data_ptr(), groups, q.shape[1] // groups, length, width,
        torch.get_num_threads(),
    ):  # fmt: skip
        raise MemoryError(f"no memory for the scores of {length} keys")
    return out


def _functions_for(x: Tensor, weight: Tensor, max_rows: int = MAX_ROWS) -> ctypes.CDLL | None:
    """Return the functions where they serve for a product or norm of x: few rows in bfloat16, without gradients."""
    serves = 0 < x.numel() <= max_rows * x.shape[-1] and _is_plain(weight) and _is_plain(x)
    return library() if serves and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") else None


def _is_plain(x: Tensor) -> bool:
    """Return whether x is bfloat16 on the CPU, and not what only stands for a tensor: one that is shared among
    processes, or traced."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype == torch.bfloat16 and x.device.type == "cpu"


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
