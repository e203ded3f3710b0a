"""What a product with quantised weights has to offer, whoever computes it."""

from abc import ABC, abstractmethod

from torch import Tensor

from vlm.quantization.scheme import Scheme
from vlm.quantization.weight import QuantizedWeight


class Kernel(ABC):
    """One product x · wᵀ for one device and dtype."""

    max_rows: int
    """Rows of x up to which it is sooner done than expanding the weights is."""

    @abstractmethod
    def arrange(self, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
        """Return numbers and scales as the product wants them."""

    @abstractmethod
    def restore(self, codes: Tensor, scales: Tensor, scheme: Scheme, rows: slice) -> QuantizedWeight:
        """Return the weights of `rows`, a multiple of 64 to begin with, from what `arrange` made."""

    @abstractmethod
    def product(self, x: Tensor, codes: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
        """Return x [rows, in] times the weights, [rows, out]."""
