"""Copies and computing on a GPU are kept apart by events: played here by streams of which only the order is known."""

import copy
from contextlib import contextmanager

import pytest
import torch

from tests.streamed_models import QUESTION, SHORT, model_of_six, streamed
from vlm import VLM, Tokenizer
from vlm.checkpoint import layer_stream


@pytest.fixture(scope="module")
def source() -> VLM:
    return VLM(model_of_six(), Tokenizer.bytes_only())


class Clock:
    """A stream of which only the order is known: what it did, and how far others were when it waited for them."""

    def __init__(self, name: str):
        self.name, self.seen = name, {name: 0}

    def work(self) -> tuple[str, int]:
        self.seen[self.name] += 1
        return self.name, self.seen[self.name]

    def comes_after(self, work: tuple[str, int]) -> bool:
        return self.seen.get(work[0], 0) >= work[1]

    def record_event(self) -> dict:
        return dict(self.seen)

    def wait_event(self, event: dict) -> None:
        for name, count in event.items():
            self.seen[name] = max(count, self.seen.get(name, 0))


@pytest.fixture
def races(source, monkeypatch):
    """A function that runs the model and returns how often a copy and a computation were not kept apart by events."""
    computing, beside = Clock("computing"), Clock("beside")
    current, found, written, read = [computing], [], {}, {}
    plain_copy, plain_init = torch.Tensor.copy_, layer_stream._Side.__init__

    def start(side, device) -> None:
        plain_init(side, device)
        side._stream = beside

    @contextmanager
    def entered(stream):
        current.append(stream)
        yield
        current.pop()

    def copied(view, *arguments, **named):
        if current[-1] is beside:
            # Memory that is new here was computed with by others up to now.
            others = [("computing", computing.seen["computing"])]
            before = read.pop(view.data_ptr(), []) if view.data_ptr() in written else others
            found.extend(work for work in before if not beside.comes_after(work))
            written[view.data_ptr()] = beside.work()
        return plain_copy(view, *arguments, **named)

    def computed(layer, *_) -> None:
        place = layer.weight.data_ptr()
        if place in written:
            found.extend([written[place]] if not computing.comes_after(written[place]) else [])
            read.setdefault(place, []).append(computing.work())

    monkeypatch.setattr(layer_stream._Side, "__init__", start)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: computing)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda *_: True)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)

    def run() -> int:
        vlm = streamed(copy.deepcopy(source.model))
        computing.work()
        for layer in (*vlm.model.encoder.local_layers, *vlm.model.encoder.global_layers, *vlm.model.decoder.layers):
            layer.attention.o_proj.register_forward_hook(computed)
        assert vlm.chat(QUESTION, config=SHORT).token_ids == source.chat(QUESTION, config=SHORT).token_ids
        assert len(written) > 2
        return len(found)

    return run


def test_events_keep_copies_and_computing_apart(races):
    assert races() == 0


@pytest.mark.parametrize(
    ("fault", "instead"), [("wait", lambda *_: None), ("computed", lambda *_: {})], ids=["no wait", "not until free"]
)
def test_a_missing_event_is_seen(races, monkeypatch, fault, instead):
    monkeypatch.setattr(layer_stream._Side, fault, instead)
    assert races() > 0
