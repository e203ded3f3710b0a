"""A decode step that was recorded once and is replayed: giving the GPU its calls takes longer than their work does.

A CUDA graph holds places of memory, not tensors. It is right as long as weights, keys, values and pictures lie where
they lay, of the same shapes; what changes from token to token is copied to a place of its own first.
"""

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Steps that are done call by call before one is recorded, which takes as long as several: short replies go without.
_STEPS_BEFORE = 8
_MOST_GRAPHS = 16
# Two orders of the same sums in bfloat16 differ by a hundredth after forty layers.
_MOST_DIFFERENCE = 0.05

_LOCK = threading.Lock()

Step = Callable[..., Tensor]


class StepGraphs:
    """The recorded steps of one decoder."""

    def __init__(self):
        self._found: OrderedDict[tuple, int | Recorded] = OrderedDict()
        self._checked: set[tuple] = set()
        self._is_off = False
        self.looks_first = False
        """Whether weights are looked at before the next replay: after a while they may lie in no memory at all."""

    def __reduce__(self) -> tuple:
        # A copy of the model, or the model in another process, is somewhere else.
        return StepGraphs, ()

    @property
    def num_recorded(self) -> int:
        return sum(isinstance(found, Recorded) for found in self._found.values())

    def run(
        self,
        step: Step,
        plain: Callable[[], Tensor],
        inputs: Sequence[Tensor | None],
        memory: Sequence[Tensor],
        state: Callable[[], object],
    ) -> Tensor | None:
        """Return step(*inputs), replayed; None where it is not recorded yet or cannot be, and is to be done as usual.

        plain: the same as it is usually done; the first that is recorded for a shape of inputs is looked at beside it.
        inputs: differ from call to call. memory: is read and written where it lies.
        state: tells whether weights are still what and where they were; None where no step may be recorded.
        """
        if self._is_off:
            return None
        if self.looks_first:
            now, self.looks_first = state(), False
            self._found = OrderedDict((of, each) for of, each in self._found.items() if _still_holds(each, now))
        key = _key(inputs, memory)
        found = self._found.pop(key, 0)
        if isinstance(found, int) and found < _STEPS_BEFORE:
            found += 1
        elif isinstance(found, int):
            if (now := state()) is None:
                return None
            found = self._recorded(step, plain, inputs, now)
        if found is None:
            self._is_off, self._found = True, OrderedDict()
            return None
        self._found[key] = found
        if len(self._found) > _MOST_GRAPHS:
            self._found.popitem(last=False)
        if isinstance(found, int):
            return None
        out = found.run(inputs)
        # Looked at while the GPU is at work.
        if state() != found.state:
            self._found = OrderedDict()
            return None
        return out

    def _recorded(
        self, step: Step, plain: Callable[[], Tensor], inputs: Sequence[Tensor | None], state: object
    ) -> "Recorded | None":
        try:
            found = Recorded(step, inputs, state)
        except Exception as error:  # noqa: BLE001 (Triton, its compiler, the driver: each has its own)
            logger.warning("a decode step cannot be recorded on this GPU and takes longer: %s", str(error)[:200])
            return None
        shapes = tuple(None if x is None else x.shape for x in inputs)
        if shapes in self._checked:
            return found
        expected, got = plain().float(), found.run(inputs).float()
        # A row whose prompt gave no numbers says nothing about the others.
        known = expected.isfinite()
        if not (got - expected)[known].norm() <= _MOST_DIFFERENCE * expected[known].norm():
            logger.warning(
                "a recorded decode step differs from torch's on this GPU and is not used, which takes longer"
            )
            return None
        self._checked.add(shapes)
        return found


def _key(inputs: Sequence[Tensor | None], memory: Sequence[Tensor]) -> tuple:
    """Return what a recorded step is fixed to: the places of `memory`, the shapes of `inputs`."""
    places = tuple((x.data_ptr(), x.shape, x.stride(), x.dtype) for x in memory)
    return places, tuple(None if x is None else (x.shape, x.dtype) for x in inputs)


def _still_holds(found: "int | Recorded", state: object) -> bool:
    return isinstance(found, int) or found.state == state


class Recorded:
    """One recorded step."""

    def __init__(self, step: Step, inputs: Sequence[Tensor | None], state: object):
        self.state = state
        # No inference tensors: these could be written in inference mode alone.
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = [None if x is None else torch.empty_like(x).copy_(x) for x in inputs]
        with torch.cuda.device(inputs[0].device) if inputs[0].device.type == "cuda" else nullcontext():
            self._replay, self._out = record(lambda: step(*self._inputs))
        # What a replay does not write must not look like its result.
        self._out.fill_(float("nan"))

    def run(self, inputs: Sequence[Tensor | None]) -> Tensor:
        """Return the step's result, which the next run overwrites."""
        for own, x in zip(self._inputs, inputs, strict=True):
            if own is not None:
                own.copy_(x)
        self._replay()
        return self._out


def record(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Return a replay of `call` on the current GPU, and the tensor that it writes its result to."""
    # One at a time in a process, as torch wants it.
    with _LOCK:
        before = torch.cuda.current_stream()
        beside = _stream_beside(before.device)
        beside.wait_stream(before)
        try:
            with torch.cuda.stream(beside):
                # What is compiled or chosen at the first call must not be while it is recorded.
                call()
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the GPU.
            with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
                out = call()
        finally:
            # Where recording fails torch leaves its stream current.
            torch.cuda.set_stream(before)
            before.wait_stream(beside)
    return graph.replay, out


@functools.cache
def _stream_beside(device: torch.device) -> "torch.cuda.Stream":
    """Return the one stream that is recorded on: for each there is, cuBLAS keeps memory."""
    return torch.cuda.Stream(device)
