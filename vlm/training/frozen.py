"""QLoRA's half that stays: gradients pass quantised layers on their way to the adapters, the layers get none.

Nothing expanded is kept between the two ways: the weights are expanded again, a part at a time, when gradients come.
Source: Dettmers et al., arXiv 2305.14314, equation 5.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vlm.quantization import QuantizedLinear, dequantize, quantized_layers

ROWS = 4096
"""Rows of a layer that are expanded at a time, a multiple of 64."""


def let_gradients_through(model: nn.Module) -> None:
    """Have gradients pass every quantised layer of `model`; where none are wanted its own kernels go on."""
    for layer in quantized_layers(model).values():
        layer.forward = functools.partial(_forward, layer, layer.forward)


def _forward(layer: QuantizedLinear, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return plain(x)
    kind = x.device.type
    # The meta device has none, and to ask it is an error.
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return _Product.apply(x.reshape(-1, layer.in_features), layer).view(*x.shape[:-1], layer.out_features)


class _Product(torch.autograd.Function):
    """x · wᵀ, of which x alone has a gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.expanded_product(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        total = grad.new_zeros(len(grad), layer.in_features)
        for start in range(0, layer.out_features, ROWS):
            rows = slice(start, min(start + ROWS, layer.out_features))
            total += grad[:, rows] @ dequantize(layer.stored(rows), layer.scheme, grad.dtype)
        return total, None
