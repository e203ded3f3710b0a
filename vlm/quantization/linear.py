"""The linear layer that keeps its weights quantised, and how it takes the place of a plain one."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm.gpu import Weights
from vlm.model import VisionLanguageModel
from vlm.native import Linear, NativeWeights, product
from vlm.quantization.cpu_product import NativeKernel
from vlm.quantization.gpu_product import TritonKernel
from vlm.quantization.kernel import Kernel
from vlm.quantization.kernel_choice import find_kernel
from vlm.quantization.scheme import GROUP_SIZES, Scheme, plan, quantized_config
from vlm.quantization.weight import CHUNK, QuantizedWeight, dequantize, quantize

logger = logging.getLogger(__name__)


class QuantizedLinear(nn.Module):
    """A linear layer without bias whose weights are quantised.

    Few rows go through a kernel where there is one, ours or torch's. Many rows, and weights without a kernel, are
    multiplied with weights that are expanded a part at a time and let go again: the same result as of a plain layer
    with the expanded weights.
    """

    def __init__(self, in_features: int, out_features: int, scheme: Scheme):
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self.kernel: Kernel | None = None
        groups = scheme.num_groups(in_features)
        kind = torch.int8 if scheme.bits == 8 else torch.uint8
        self.register_buffer("codes", torch.empty(out_features, in_features * scheme.bits // 8, dtype=kind))
        self.register_buffer("scales", torch.empty(out_features, groups))
        zeros = None if scheme.symmetric else torch.empty(out_features, groups, dtype=torch.int8)
        self.register_buffer("zeros", zeros)

    @classmethod
    def of(cls, weight: QuantizedWeight, scheme: Scheme) -> "QuantizedLinear":
        """Return a layer with these weights, ready for use."""
        with torch.device("meta"):
            layer = cls(weight.codes.shape[1] * 8 // scheme.bits, weight.codes.shape[0], scheme)
        layer.codes, layer.scales, layer.zeros = weight
        layer.arrange()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        if (weights := self.native_weights(x)) is not None:
            return product(x, [weights])
        rows = x.reshape(-1, self.in_features)
        kernel = self.kernel if x.dtype == self.scales.dtype else None
        has_gradient = torch.is_grad_enabled() and x.requires_grad
        if kernel is not None and len(rows) <= kernel.max_rows and not has_gradient:
            out = kernel.product(rows.contiguous(), self.codes, self.scales, self.scheme)
        else:
            out = self.expanded_product(rows)
        return out.view(*x.shape[:-1], self.out_features)

    def native_weights(self, x: Tensor) -> NativeWeights | None:
        """Return where the weights are for a product with x [..., in] in C; None where there is none."""
        fits = x.dtype == self.scales.dtype and x.shape[-1] == self.in_features
        if not (fits and isinstance(self.kernel, NativeKernel)) or (torch.is_grad_enabled() and x.requires_grad):
            return None
        return self.kernel.native_weights(self.codes, self.scales, self.scheme)

    def gpu_weights(self) -> Weights | None:
        """Return the weights as the kernels of a decode step on a GPU take them; None where they do not."""
        if not isinstance(self.kernel, TritonKernel):
            return None
        return self.kernel.weights(self.codes, self.scales, self.scheme)

    def expanded_product(self, x: Tensor) -> Tensor:
        """Return x [rows, in] times the weights, a part of them expanded at a time."""
        out = x.new_empty(len(x), self.out_features)
        for rows in self._parts():
            out[:, rows] = functional.linear(x, self._expanded(rows, x.dtype))
        return out

    @property
    def weight(self) -> Tensor:
        """The expanded weights [out, in], made anew each time."""
        return torch.cat([self._expanded(rows, self.scales.dtype) for rows in self._parts()])

    @property
    def num_weights(self) -> int:
        return self.in_features * self.out_features

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def stored(self, rows: slice = slice(None)) -> QuantizedWeight:
        """Return the quantised weights of `rows` (from a multiple of 64 on) as no kernel arranged them."""
        if self.kernel is not None:
            return self.kernel.restore(self.codes, self.scales, self.scheme, rows)
        return QuantizedWeight(self.codes[rows], self.scales[rows], None if self.zeros is None else self.zeros[rows])

    def arrange(self) -> None:
        """Arrange the weights for the kernel of their device, if there is one for them."""
        weight = QuantizedWeight(self.codes, self.scales, self.zeros)
        if self.kernel is None and (kernel := find_kernel(self.scheme, weight)) is not None:
            (self.codes, self.scales), self.zeros = kernel.arrange(weight), None
            self.kernel = kernel

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.scheme}"

    def _apply(self, fn, recurse: bool = True):
        # What a kernel of one device arranged is nonsense on another, or in another dtype.
        was_arranged = self.kernel is not None
        if was_arranged:
            self.codes, self.scales, self.zeros = self.stored()
            self.kernel = None
        super()._apply(fn, recurse)
        if was_arranged:
            self.arrange()
        return self

    def _parts(self) -> Iterator[slice]:
        num_rows = 64 * max(1, CHUNK // (64 * self.in_features))
        for start in range(0, self.out_features, num_rows):
            yield slice(start, min(start + num_rows, self.out_features))

    def _expanded(self, rows: slice, dtype: torch.dtype) -> Tensor:
        return dequantize(self.stored(rows), self.scheme, dtype)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Return the quantised layers of `model` by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def put_quantized_layers(model: nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Put quantised layers without weights in the place of the plain ones that `schemes` names."""
    for name, scheme in schemes.items():
        layer = model.get_submodule(name)
        with torch.device("meta"):
            model.set_submodule(name, QuantizedLinear(layer.in_features, layer.out_features, scheme))


def arrange_layers(model: nn.Module) -> None:
    """Make the quantised layers of `model` ready for use, and say once how they are and which have no kernel."""
    layers = quantized_layers(model).values()
    counts = Counter(str(layer.scheme) for layer in layers)
    if counts:
        logger.info("quantised layers: %s", ", ".join(f"{count} {scheme}" for scheme, count in counts.items()))
    for layer in layers:
        layer.arrange()
    slow = [layer for layer in layers if layer.kernel is None]
    if slow:
        kinds = ", ".join(sorted({f"{layer.scheme}, {layer.in_features} columns" for layer in slow}))
        logger.warning(
            "torch has no kernel for %d of %d quantised layers on %s in %s (%s); they expand their weights each time, "
            "which is slower",
            len(slow), len(layers), slow[0].codes.device, slow[0].scales.dtype, kinds,
        )  # fmt: skip


@torch.no_grad()
def quantize_model(model: VisionLanguageModel, precision: str, group_size: int = GROUP_SIZES[0]) -> None:
    """Quantise the decoder of a model that is in memory, layer by layer; see `plan` and `quantized_config`."""
    decoder = model.decoder
    if decoder.head is None:
        model.config = quantized_config(model.config)
        decoder.config = model.config.decoder
        with torch.device("meta"):
            decoder.head = Linear(decoder.config.width, decoder.config.vocab_size)
        decoder.head.weight = decoder.embedding.weight
    for name, scheme in plan(model, precision, group_size).items():
        weight = model.get_submodule(name).weight
        model.set_submodule(name, QuantizedLinear.of(quantize(weight, scheme), scheme))
    arrange_layers(model)
