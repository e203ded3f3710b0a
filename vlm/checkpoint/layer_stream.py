"""Layers whose weights stay in the CPU's memory: those of the next are copied to the device while one computes.

For inference alone. Which layers these are is said by `offload.py`.
"""

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from vlm.errors import VLMError

# Where a weight may begin in a buffer, in bytes: as torch's own allocator aligns tensors.
_ALIGNED = 512


class LayerStream:
    """The layers of one stack, and two buffers on the device that take turns in holding a layer's weights.

    Outside of its layer's forward a weight is in the CPU's memory, where it may be read, written and replaced. What was
    copied before it was written is copied again, as far as torch counts writing: what is written through `.data`
    between two passes may be seen a pass late. What lies on the device, an adapter say, stays there.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device | str, *, repeats: bool):
        """Move the weights of `layers`, in the order they are run, to the CPU, and stream them from now on.

        repeats: the last layer is soon followed by the first, which is then copied ahead; the buffers stay. Otherwise
            they are let go after the last layer.
        """
        # With its index, which is that of the device where an input is.
        device = torch.empty(0, device=device).device
        self.__setstate__({"layers": layers, "device": device, "repeats": repeats})
        with _ordinary():
            for place, layer in enumerate(layers):
                for weight in layer.parameters():
                    weight.data = weight.data.cpu()
                self._weights(layer)
                layer.forward = partial(self._run, place)

    def __getstate__(self) -> dict:
        # The layers of a copy, or of the model in another process, have buffers of their own.
        return {"layers": [layer() for layer in self._layers], "device": self._device, "repeats": self._repeats}

    def __setstate__(self, state: dict) -> None:
        # A layer holds the stream. Held in turn it would stay in memory until Python looks for circles.
        self._layers = [weakref.ref(layer) if layer is not None else lambda: None for layer in state["layers"]]
        self._device, self._repeats = state["device"], state["repeats"]
        self._side = _Side(self._device)
        self._buffers = [_Buffer(), _Buffer()]
        """The one used last comes last."""
        self._lent: list[tuple[nn.Parameter, Tensor]] = []
        """Weights that are on the device, and what they are on the CPU."""
        self._lock = threading.Lock()

    @property
    def buffer_bytes(self) -> int:
        """What the buffers take on the device now."""
        return sum(0 if buffer.memory is None else buffer.memory.nbytes for buffer in self._buffers)

    def _run(self, place: int, x: Tensor, *inputs, **named) -> object:
        """Return what the layer at `place` makes of its inputs."""
        layer = self._layers[place]()
        forward = partial(type(layer).forward, layer, x, *inputs, **named)
        if x.device != self._device:
            # The whole model was moved.
            return forward()
        if torch.is_grad_enabled():
            raise VLMError(
                "invalid_request",
                "weights that stay in the CPU's memory have no gradients, and gradients are on; call the model within "
                "torch.inference_mode() or torch.no_grad(), or load it with low_memory=False to train it",
            )
        # Threads that are in the same stack take turns layer by layer.
        with self._lock, self._on_device(place, layer):
            return forward()

    @contextmanager
    def _on_device(self, place: int, layer: nn.Module) -> Iterator[None]:
        """Within, a layer's weights are on the device, and those of the next are on their way there."""
        goes_on = False
        try:
            if self._lent:
                # Ctrl-C came while they were given back.
                self._give_back()
                self._buffers = [_Buffer(), _Buffer()]
            buffer = self._fetch(layer)
            self._buffers.sort(key=lambda each: each is buffer)
            self._side.wait(buffer)
            for weight, view in zip(self._weights(layer), buffer.views, strict=True):
                self._lent.append((weight, weight.data))
                weight.data = view
            following = self._following(place)
            if following is not None and following is not layer:
                self._fetch(following)
            yield
            goes_on = self._repeats or place + 1 < len(self._layers)
        finally:
            self._give_back()
            if goes_on:
                self._buffers[-1].free = self._side.computed()
            else:
                self._buffers = [_Buffer(), _Buffer()]

    def _give_back(self) -> None:
        while self._lent:
            weight, home = self._lent[-1]
            weight.data = home
            self._lent.pop()

    def _following(self, place: int) -> nn.Module | None:
        """Return the layer that is run next; None where there is none, or where it is no longer."""
        if place + 1 == len(self._layers) and not self._repeats:
            return None
        return self._layers[(place + 1) % len(self._layers)]()

    def _fetch(self, layer: nn.Module) -> "_Buffer":
        """Return the buffer that holds a layer's weights, or will: what is used waits for it."""
        with _ordinary():
            weights = self._weights(layer)
            source = [(weight.data, weight._version) for weight in weights]
            for buffer in self._buffers:
                if buffer.is_of(source):
                    return buffer
            buffer = self._buffers[0]
            if buffer.memory is None or buffer.memory.nbytes < _starts(weights)[-1]:
                sizes = [_starts(self._weights(each))[-1] for held in self._layers if (each := held()) is not None]
                buffer.memory = torch.empty(max(sizes), dtype=torch.uint8, device=self._device)
                buffer.free = self._side.computed()
            buffer.views = [
                buffer.memory[start : start + weight.nbytes].view(weight.dtype).view(weight.shape)
                for weight, start in zip(weights, _starts(weights), strict=False)
            ]
            self._side.copy(buffer, weights)
            buffer.source = source
        return buffer

    def _weights(self, layer: nn.Module) -> list[nn.Parameter]:
        """Return the weights of a layer that are on the CPU, each where the device reads by itself."""
        found = []
        for part in layer.modules():
            for name, weight in part._parameters.items():
                if weight is None or weight.device.type != "cpu":
                    continue
                if weight.is_inference():
                    # Torch does not count what is written into it, nor let it point elsewhere.
                    weight = part._parameters[name] = nn.Parameter(weight.clone())
                if not self._side.reads(weight):
                    weight.data = weight.data.pin_memory()
                found.append(weight)
        return found


@dataclass(eq=False)
class _Buffer:
    """Memory on the device for the weights of one layer at a time."""

    memory: Tensor | None = None
    """[bytes] uint8"""
    views: list[Tensor] = field(default_factory=list)
    """Of it: the weights."""
    source: list[tuple[Tensor, int]] | None = None
    """What was copied, and torch's count of what was written into it. Held, so that nothing else gets its place."""
    free: "torch.cuda.Event | None" = None
    """When what was computed with it is done."""
    ready: "torch.cuda.Event | None" = None
    """When what it shall hold is there."""

    def is_of(self, source: list[tuple[Tensor, int]]) -> bool:
        """Return whether it holds `source` as that is now."""
        if self.source is None or len(self.source) != len(source):
            return False
        pairs = zip(self.source, source, strict=True)
        return all(held.data_ptr() == now.data_ptr() and then == count for (held, then), (now, count) in pairs)


class _Side:
    """Copies to a device beside what it computes. A device that is no GPU copies at once."""

    def __init__(self, device: torch.device):
        self._device = device
        # A model may be unpickled where there is no GPU.
        has_streams = device.type == "cuda" and torch.cuda.is_available()
        self._stream = torch.cuda.Stream(device) if has_streams else None

    def reads(self, weight: Tensor) -> bool:
        """Return whether the device reads a weight on the CPU by itself: only pinned, for which torch takes memory in
        powers of two."""
        return self._stream is None or weight.is_pinned()

    def computed(self) -> "torch.cuda.Event | None":
        """Return the event that all computing asked for by now is done."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    def copy(self, buffer: _Buffer, weights: Sequence[Tensor]) -> None:
        """Copy `weights` into the views of `buffer`, once that is free."""
        if self._stream is None:
            for view, weight in zip(buffer.views, weights, strict=True):
                view.copy_(weight)
            return
        self._stream.wait_event(buffer.free)
        # Let go on the way, its memory may not be given to others before the copy is done.
        buffer.memory.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            for view, weight in zip(buffer.views, weights, strict=True):
                view.copy_(weight, non_blocking=True)
        buffer.ready = self._stream.record_event()

    def wait(self, buffer: _Buffer) -> None:
        """Let what is computed from now on wait until `buffer` is ready."""
        if buffer.ready is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(buffer.ready)
            buffer.memory.record_stream(computing)


@contextmanager
def _ordinary() -> Iterator[None]:
    """Within, tensors are made that inference mode leaves no mark on."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _starts(weights: Sequence[Tensor]) -> list[int]:
    """Return where each of `weights` begins in a buffer, in bytes, and where the last one ends."""
    sizes = (-(-weight.nbytes // _ALIGNED) * _ALIGNED for weight in weights)
    return list(accumulate(sizes, initial=0))
