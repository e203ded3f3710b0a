"""A decode step on a GPU: kernels in Triton that read each weight once, recorded as a CUDA graph.

Products of prompts and of many rows, and the encoder, are torch's own. Without Triton all is, and that is said once.
"""

from vlm.gpu.functions import WIDTHS, Weights, attend_one, product, product_of_rows
from vlm.gpu.graph import StepGraphs
from vlm.gpu.step import ready_layers, run_layers
from vlm.gpu.support import attends, serves

__all__ = [
    "WIDTHS",
    "StepGraphs",
    "Weights",
    "attend_one",
    "attends",
    "product",
    "product_of_rows",
    "ready_layers",
    "run_layers",
    "serves",
]
