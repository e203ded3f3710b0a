"""What torch does slowly on the CPU, in C: products of few rows, attention of one position, a layer's decode step.

The C beside this is built with gcc the first time it is wanted. Without gcc, or on a processor without AVX-512 VNNI,
torch's own functions serve, and that is said once.
"""

from vlm.native.binding import TILE, NativeWeights, in_large_pages, library, product
from vlm.native.functions import (
    MAX_ROWS,
    Linear,
    RMSNorm,
    attend_one,
    gated,
    linear,
    rotate_in_place,
    side_by_side,
)
from vlm.native.step import AllLayersKV, DecodeStep, decode_step, weights_state

__all__ = [
    "MAX_ROWS",
    "TILE",
    "AllLayersKV",
    "DecodeStep",
    "Linear",
    "NativeWeights",
    "RMSNorm",
    "attend_one",
    "decode_step",
    "gated",
    "in_large_pages",
    "library",
    "linear",
    "product",
    "rotate_in_place",
    "side_by_side",
    "weights_state",
]
