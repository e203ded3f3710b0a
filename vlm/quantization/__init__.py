"""Weight-only quantisation of the decoder: which layers, the arithmetic, the kernels, the layer that uses them.

How quantised weights are stored in files is left to `vlm.checkpoint`.
"""

from vlm.quantization.linear import QuantizedLinear, quantize_model, quantized_layers
from vlm.quantization.scheme import GROUP_SIZES, PRECISIONS, Scheme, check_precision, plan, quantized_config
from vlm.quantization.weight import QuantizedWeight, dequantize, quantize

__all__ = [
    "GROUP_SIZES",
    "PRECISIONS",
    "QuantizedLinear",
    "QuantizedWeight",
    "Scheme",
    "check_precision",
    "dequantize",
    "plan",
    "quantize",
    "quantize_model",
    "quantized_config",
    "quantized_layers",
]
