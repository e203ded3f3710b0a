"""How much of what the machine can do a run uses: its operations beside those of a plain matrix product.

On several processes both are those of all together.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vlm.training.parallel.world import World

NUM_COUNTED = 3
"""Steps whose operations are counted; those after them are taken to have as many for a token."""
NUM_TRIES = 5


class Speed:
    """Operations of steps, and the most that the devices do in a second. All processes of a run call it alike."""

    def __init__(self, device: torch.device, dtype: torch.dtype, world: World | None = None):
        self.world = world or World.alone()
        # All measure at the same time: processes may share a CPU, and then neither has it for itself.
        self.world.gather(None)
        self.peak = sum(self.world.gather(measured_peak(device, dtype)))
        self._operations = self._tokens = self._steps = 0

    @contextmanager
    def counting(self, num_tokens: int) -> Iterator[None]:
        """Count the operations of a step, of which so many tokens are here, if enough are not counted yet."""
        if self._steps == NUM_COUNTED:
            yield
            return
        with _Counter() as counter:
            yield
        self._operations += sum(self.world.gather(counter.total))
        self._tokens += self.world.total(num_tokens, "data")
        self._steps += 1

    def share(self, tokens_per_s: float) -> float:
        """Return which part of the peak goes into steps at this speed."""
        return tokens_per_s * self._operations / max(self._tokens, 1) / self.peak


class _Counter(TorchDispatchMode):
    """Adds up the operations of this process: torch's `FlopCounterMode` would count those on all of a shared tensor."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            # It comes back with what of it is here.
            return NotImplemented
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        # A shared tensor tries out on a fake one of what shape the result is.
        if formula is not None and FakeTensor not in types:
            self.total += formula(*args, **(kwargs or {}), out_val=found)
        return found


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
