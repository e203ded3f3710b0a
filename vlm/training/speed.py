"""How much of what the machine can do a run uses: its operations beside those of a plain matrix product."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

NUM_COUNTED = 3
"""Steps whose operations are counted; those after them are taken to have as many for a token."""
NUM_TRIES = 5


class Speed:
    """Operations of steps, and the most that the device does in a second."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.peak = measured_peak(device, dtype)
        self._operations = self._tokens = self._steps = 0

    @contextmanager
    def counting(self, num_tokens: int) -> Iterator[None]:
        """Count the operations of a step of so many tokens, if enough are not counted yet."""
        if self._steps == NUM_COUNTED:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._operations += counter.get_total_flops()
        self._tokens += num_tokens
        self._steps += 1

    def share(self, tokens_per_s: float) -> float:
        """Return which part of the peak goes into steps at this speed."""
        return tokens_per_s * self._operations / max(self._tokens, 1) / self.peak


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of the best of a few products of large square matrices."""
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(NUM_TRIES):
        since = time.perf_counter()
        product = matrix @ matrix
        # Reading a number waits for the device.
        product[0, 0].item()
        best = min(best, time.perf_counter() - since)
    return 2 * size**3 / best
