"""Whether the kernels compute on this machine what torch computes: a compiler or a GPU may fail at any of them."""

import torch
from torch import Tensor
from torch.nn import functional

from vlm.gpu.functions import Weights, attend_one, product, product_of_rows

# Of numbers in 16 bits, a few roundings; what is wrong is off by as much as there is.
_TOLERANCE = 0.02


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
