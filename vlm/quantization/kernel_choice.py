"""Which product with quantised weights is right where."""

import torch

from vlm.quantization.cpu_product import NativeKernel
from vlm.quantization.gpu_product import TritonKernel
from vlm.quantization.kernel import Kernel
from vlm.quantization.scheme import Scheme
from vlm.quantization.torch_product import torch_kernel
from vlm.quantization.weight import QuantizedWeight

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def find_kernel(scheme: Scheme, weight: QuantizedWeight) -> Kernel | None:
    """Return the kernel that is right for these weights on their device; None where there is none.

    At 8 bits and 16-bit floats torch's reads 16 columns at a time and does not look where a row ends (torch 2.14: wrong
    numbers, or a crash), so rows must be multiples of 32.
    """
    num_cols = weight.codes.shape[1] * 8 // scheme.bits
    if weight.scales.dtype not in _FLOATS or len(weight.scales) == 0 or num_cols % 32:
        return None
    if (kernel := TritonKernel.of(scheme, weight)) is not None or weight.scales.device.type != "cpu":
        return kernel
    return NativeKernel.of(scheme, weight) or torch_kernel(scheme, weight)
