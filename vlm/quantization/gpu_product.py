"""Our product with quantised weights on a GPU; see `vlm/gpu/kernels.py`. Weights lie there as they are stored."""

import torch
from torch import Tensor

from vlm import gpu
from vlm.quantization.kernel import Kernel
from vlm.quantization.scheme import Scheme
from vlm.quantization.weight import QuantizedWeight

# Eight numbers of 4 bits are read as one word.
_WORD = 8


class TritonKernel(Kernel):
    """8 bits with a scale a row, and 4 bits in groups."""

    max_rows = 64

    @classmethod
    def of(cls, scheme: Scheme, weight: QuantizedWeight) -> "TritonKernel | None":
        if scheme.bits == 8:
            fits = scheme.symmetric and weight.scales.shape[1] == 1
        else:
            fits = scheme.group_size is not None and scheme.group_size % _WORD == 0
        with torch.no_grad():
            return cls() if fits and gpu.serves(*weight) else None

    def arrange(self, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
        codes, scales, zeros = weight
        return codes.contiguous(), torch.stack([scales] if zeros is None else [scales, zeros.to(scales.dtype)])

    def restore(self, codes: Tensor, scales: Tensor, scheme: Scheme, rows: slice) -> QuantizedWeight:
        zeros = None if scheme.symmetric else scales[1, rows].to(torch.int8)
        return QuantizedWeight(codes[rows], scales[0, rows], zeros)

    def product(self, x: Tensor, codes: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
        weights = self.weights(codes, scales, scheme)
        return gpu.product(x[0], [weights])[None] if len(x) == 1 else gpu.product_of_rows(x, weights)

    def weights(self, codes: Tensor, scales: Tensor, scheme: Scheme) -> gpu.Weights:
        """Return the weights that `arrange` made, as the kernels of a decode step take them."""
        return gpu.Weights(codes, scales[0], scales[1] if len(scales) == 2 else None, scheme.group_size or 0)
