"""The code for a GPU where there is none: kernels run by Triton's interpreter, a recorded call called again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlm.gpu import functions, graph, support

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def take_cpu_for_gpu(patch: pytest.MonkeyPatch) -> None:
    """Have the code for a GPU serve tensors on the CPU, where there is no GPU."""
    if DEVICE == "cpu":
        patch.setattr(support, "DEVICE", "cpu")
        patch.setattr(graph, "record", _called_again)
        # The interpreter runs one program after the other.
        patch.setattr(functions, "_ROWS_EACH", 32)


def _called_again(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Return what `record` does: a replay of `call` on the same memory, and where it writes to."""
    out = call().clone()
    return lambda: out.copy_(call()), out
