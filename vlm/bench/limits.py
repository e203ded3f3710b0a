"""What the machine can do at most: bytes read a second, and arithmetic of matrix products."""

import torch
from torch.nn import functional

from vlm.bench.measure import seconds
from vlm.native import library

_SIDE = 2048


def read_bandwidth(num_bytes: int, window_s: float) -> float:
    """Return the bytes a second that all threads together read from memory, the best way known here."""
    numbers = torch.empty(num_bytes // 4)
    ways = {"torch": lambda: numbers.sum()}
    if (functions := library()) is not None:
        functions.large_pages(numbers.data_ptr(), numbers.nbytes)
        ways["native"] = lambda: functions.read_all(numbers.data_ptr(), numbers.nbytes, torch.get_num_threads())
    numbers.fill_(1)
    return numbers.nbytes / min(seconds(ways, window_s=window_s).values())


def matrix_throughput(dtype: torch.dtype, window_s: float) -> float:
    """Return the floating-point operations a second of a large product."""
    a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    return 2 * _SIDE**3 / seconds({"": lambda: functional.linear(a, b)}, window_s=window_s)[""]
