"""Whether the kernels serve: on this machine, where a compiler or a GPU may fail at any of them; for given tensors."""

import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional

from vision_encoder.native import PLAIN
from vlm.gpu.functions import WIDTHS, Weights, attend_one, product, product_of_rows

DEVICE = "cuda"

logger = logging.getLogger(__name__)

# Of numbers in 16 bits, a few roundings; what is wrong is off by as much as there is.
_TOLERANCE = 0.02


@functools.cache
def is_usable() -> bool:
    """Return whether the kernels can be had and are right on this machine; if not it is said why, once."""
    try:
        fault = find_fault(DEVICE)
    except torch.OutOfMemoryError:
        # Another time there may be more.
        raise
    except ImportError:
        fault = "install triton"
    except Exception as error:  # noqa: BLE001 (compilers and drivers have errors of their own)
        fault = str(error)[:200]
    if fault is not None:
        logger.warning(
            "without our kernels in Triton torch's own functions serve on the GPU, which takes longer, most of all in "
            "8 and 4 bits: %s",
            fault,
        )
    return fault is None


def serves(*tensors: Tensor | None) -> bool:
    """Return whether the kernels may be used: for plain tensors on a GPU, without gradients."""
    plain = all(x.device.type == DEVICE and type(x) in PLAIN for x in tensors if x is not None)
    return plain and not torch.is_grad_enabled() and not torch.is_autocast_enabled(DEVICE) and is_usable()


def attends(q: Tensor, k: Tensor, v: Tensor, scales: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> bool:
    """Return whether `attend_one` takes these, shaped as it says."""
    if not serves(q, k, v, mask, *(scales or ())):
        return False
    fits = q.shape[2] == 1 and k.shape[3] in WIDTHS and k.shape[2] > 0 and k.stride() == v.stride()
    fits = fits and q.stride(3) == k.stride(3) == 1 and (scales is not None or q.dtype == k.dtype)
    # Of a mask a row of keys for each row is read.
    fits = fits and (mask is None or (mask.dtype == torch.bool and mask.shape[1:3] == (1, 1) and mask.stride(3) == 1))
    fits = fits and (mask is None or mask.shape[3] == k.shape[2])
    if scales is not None:
        fits = fits and scales[0].stride() == scales[1].stride() and scales[0].stride(2) == 1
    return fits


def find_fault(device: str) -> str | None:
    """Return what is wrong with the kernels there, in words; None where nothing is."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    q, k, v, x = randn(1, 4, 1, 64), randn(1, 2, 80, 64), randn(1, 2, 80, 64), randn(3, 256)
    mask = (torch.arange(80, device=device) < 70)[None, None, None]
    codes = torch.randint(0, 256, (48, 128), generator=generator, dtype=torch.uint8).to(device)
    weights = Weights(codes, (randn(48, 4).abs() + 0.1) / 64, None, 64)
    numbers = torch.stack((codes & 15, codes >> 4), -1).flatten(1).to(dtype) - 8
    expanded = numbers * weights.scales.repeat_interleave(64, 1)
    plain = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    pairs = {
        "attention": (attend_one(q, k, v, mask=mask), plain),
        "a product": (product(x[0], [Weights(expanded)]), expanded @ x[0]),
        "a product in 4 bits": (product(x[0], [weights]), expanded @ x[0]),
        "a product of rows in 4 bits": (product_of_rows(x, weights), x @ expanded.T),
    }
    wrong = [name for name, (found, exact) in pairs.items() if not _is_close(found.float(), exact.float())]
    return f"{', '.join(wrong)}: other numbers than torch's" if wrong else None


def _is_close(found: Tensor, exact: Tensor) -> bool:
    return bool((found - exact).norm() <= _TOLERANCE * exact.norm())
