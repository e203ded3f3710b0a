"""What the machine can do at most: bytes read a second, and arithmetic of matrix products."""

from typing import NamedTuple

import torch
from torch.nn import functional

from vlm.bench.measure import Call, seconds
from vlm.native import library

_SIDE = 2048


class Work(NamedTuple):
    """Something that the machine does as fast as it can."""

    call: Call
    amount: int
    """Bytes or floating-point operations of a call."""


def reading(num_bytes: int, window_s: float) -> Work:
    """Return how all threads together read so many bytes from memory, the best way known here."""
    numbers = torch.empty(num_bytes // 4)
    ways = {"torch": lambda: numbers.sum()}
    if (functions := library()) is not None:
        functions.large_pages(numbers.data_ptr(), numbers.nbytes)
        ways["native"] = lambda: functions.read_all(numbers.data_ptr(), numbers.nbytes, torch.get_num_threads())
    numbers.fill_(1)
    found = seconds(ways, windows=3, window_s=window_s)
    return Work(ways[min(found, key=found.get)], numbers.nbytes)


def product(dtype: torch.dtype) -> Work:
    """Return a large product of matrices."""
    a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    return Work(lambda: functional.linear(a, b), 2 * _SIDE**3)
