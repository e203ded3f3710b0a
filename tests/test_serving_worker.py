"""Before a model is ready: what the worker says of one, and how often it is tried; no process is started."""

import asyncio

import pytest

from vlm import VLM, GenerationConfig, VLMError
from vlm.serving import engine as module
from vlm.serving.engine import MAX_FIRST_STARTS, NEVER_READY, Engine
from vlm.serving.model_process.job import Job
from vlm.serving.model_process.messages import Ready
from vlm.serving.model_process.worker import open_model
from vlm.serving.settings import EngineOptions


def test_the_size_of_the_model_is_told(tiny, monkeypatch):
    monkeypatch.setattr(VLM, "from_pretrained", lambda *arguments, **named: tiny)
    _, info = open_model(EngineOptions())
    assert info.num_bytes == tiny.info.num_bytes > 0


def test_every_option_of_the_model_reaches_it(tiny, monkeypatch):
    chosen = {"device": "cpu", "dtype": "bfloat16", "quantize": "int4", "kv_cache_dtype": "int8"}
    chosen |= {"reference": "transformers", "allow_urls": True, "low_memory": True, "adapters": ("run/adapter",)}
    chosen |= {"num_views": 2, "thin": False}
    given = {}
    monkeypatch.setattr(VLM, "from_pretrained", lambda source, **named: given.update(named) or tiny)
    open_model(EngineOptions(**chosen))
    assert given == chosen


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=lambda error: str(error)[:8] or "plain",
)
def test_a_model_that_does_not_fit_is_refused_and_other_faults_are_none_of_that(error, monkeypatch):
    errors = [error, RuntimeError("shape mismatch")]

    def load(*arguments, **named):
        raise errors.pop(0)

    monkeypatch.setattr(VLM, "from_pretrained", load)
    with pytest.raises(VLMError, match="does not fit the memory that is free") as caught:
        open_model(EngineOptions())
    assert caught.value.code == "device_unavailable"
    with pytest.raises(RuntimeError, match="shape mismatch"):
        open_model(EngineOptions())


async def started(monkeypatch, is_ready: list[bool]) -> tuple[Engine, list]:
    """Return an engine whose worker processes end at once, each after it was ready or not; and those started."""
    processes: list = []

    class Process:
        def __init__(self, options, on_message, on_end):
            processes.append(self)
            loop = asyncio.get_running_loop()
            if is_ready and is_ready.pop(0):
                loop.call_soon(on_message, self, Ready({"name": "m"}))
            loop.call_soon(on_end, self)

    monkeypatch.setattr(module, "WorkerProcess", Process)
    monkeypatch.setattr(module, "MAX_RESTART_WAIT_S", 0.0)
    engine = Engine(EngineOptions())
    await engine.start()
    return engine, processes


def test_a_model_that_never_was_ready_is_tried_a_few_times_and_given_up(monkeypatch):
    """The system ends a process without a word when memory runs out."""

    async def wait():
        engine, processes = await started(monkeypatch, [])
        run = engine.run(Job(messages=[], config=GenerationConfig()))
        assert await asyncio.wait_for(anext(run), 10) == NEVER_READY
        await asyncio.sleep(0.05)
        assert (engine.failure, len(processes)) == (NEVER_READY, MAX_FIRST_STARTS)
        assert engine.stats().restarts == MAX_FIRST_STARTS - 1

    asyncio.run(wait())
    assert len(NEVER_READY.message) <= 300


def test_a_model_that_was_ready_once_is_started_for_ever(monkeypatch):
    async def wait():
        engine, processes = await started(monkeypatch, [True])
        async with asyncio.timeout(10):
            while len(processes) < 3 * MAX_FIRST_STARTS:
                await asyncio.sleep(0.01)
        assert engine.failure is None

    asyncio.run(wait())
