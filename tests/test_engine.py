"""The worker process and its asyncio side: a real process, killed, stopped, crowded and left alone."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import random_model
from tests.conversations import MIXED, user
from tests.image_files import encode
from vlm import VLM, GenerationConfig, Tokenizer, VLMError, preset
from vlm.serving import engine as module
from vlm.serving.engine import Engine
from vlm.serving.model_process.job import Draining, Event, Finished, Job, Piece, QueueFull, Started
from vlm.serving.settings import EngineOptions

DEADLINE_S = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-chart"
    VLM(random_model(preset("tiny")), Tokenizer.bytes_only()).save_pretrained(folder)
    return folder


class Served:
    """An engine with an event loop of its own, for tests that are no coroutines."""

    def __init__(self, **options):
        self.runner = asyncio.Runner()
        self.engine = Engine(EngineOptions(**options))
        self.do(self.engine.start())

    def do(self, coroutine):
        return self.runner.run(asyncio.wait_for(coroutine, DEADLINE_S))

    def close(self) -> None:
        self.do(self.engine.drain(0))
        self.runner.close()


@pytest.fixture(scope="module")
def served(folder):
    served = Served(source=str(folder), num_slots=3, max_queue=4, max_new_tokens=450)
    yield served
    served.close()


@pytest.fixture
def engine(served) -> Engine:
    """The engine with a model loaded and nothing to do."""
    served.engine.options = EngineOptions(source=served.engine.options.source, num_slots=3, max_queue=4)
    served.do(until(lambda: served.engine.ready and not busy(served.engine)))
    return served.engine


def busy(engine: Engine) -> int:
    return engine.stats().running + engine.stats().waiting


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def wire(messages: list[dict]) -> list[dict]:
    """Return messages as a client sends them: pictures as data: URLs."""

    def part(given: dict) -> dict:
        if given["type"] != "image":
            return given
        url = "data:image/png;base64," + base64.b64encode(encode(given["image"], "PNG")).decode()
        return {"type": "image_url", "image_url": {"url": url}}

    return [
        turn if isinstance(turn["content"], str) else {**turn, "content": [part(given) for given in turn["content"]]}
        for turn in messages
    ]


def job(messages: list[dict], max_new_tokens: int = 8, **settings) -> Job:
    return Job(messages=wire(messages), config=GenerationConfig(max_new_tokens=max_new_tokens, **settings))


LONG = job(user("one that takes long"), 400)


async def events_of(run) -> list[Event]:
    return [event async for event in run]


async def answers(engine: Engine, jobs: list[Job]) -> list[Event]:
    """Return how each of `jobs`, which run at once, ends."""
    runs = [engine.run(each) for each in jobs]
    return [events[-1] for events in await asyncio.gather(*map(events_of, runs))]


# Answers


def test_answers_are_those_of_the_model_alone(served, engine, tiny):
    before, num_tokens = engine.stats(), 0
    settings = [{}, {"temperature": 1.2, "seed": 5}, {"stop": ["a", "\x05"]}]
    for some in settings:
        found = served.do(answers(engine, [job(messages, **some) for messages in MIXED[:7]]))
        config = GenerationConfig(max_new_tokens=8, **some)
        assert [each.token_ids for each in found] == [tiny.chat(each, config=config).token_ids for each in MIXED[:7]]
        num_tokens += sum(each.num_tokens for each in found)
    after = engine.stats()
    assert after.tokens - before.tokens == num_tokens > 50
    assert after.prompt_tokens - before.prompt_tokens == 3 * sum(len(tiny.prompt_ids(each)) for each in MIXED[:7])
    assert after.image_misses - before.image_misses == 4
    assert after.image_hits - before.image_hits >= 10
    assert after.image_bytes > 0
    assert (after.running, after.waiting, after.num_slots, after.max_queue) == (0, 0, 3, 4)


def test_events_come_in_their_order(served, engine, tiny):
    async def one():
        return await events_of(engine.run(job(MIXED[1], 20)))

    started, *pieces, finished = served.do(one())
    expected = tiny.chat(MIXED[1], config=GenerationConfig(max_new_tokens=20))
    assert started == Started(len(tiny.prompt_ids(MIXED[1])))
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == expected.text
    assert isinstance(finished, Finished)
    assert (finished.finish_reason, finished.num_tokens) == (expected.finish_reason, len(expected.token_ids))


def test_what_is_known_of_the_model(engine):
    count = engine.info.num_parameters
    assert engine.info == ("tiny-chart", 512, "float32", count, 4 * count, True)
    assert engine.failure is None


def test_a_job_that_cannot_be_read_fails_alone(served, engine, tiny):
    secret = Path(__file__)
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    jobs = [
        job(MIXED[1]),
        Job(messages=[{"role": "user", "content": [broken]}], config=GenerationConfig()),
        Job(
            messages=[{"role": "user", "content": [{"type": "image", "image": str(secret)}]}], config=GenerationConfig()
        ),
        Job(parts=["x", secret], config=GenerationConfig()),
        job(user("a" * 600)),
        Job(messages=user("x"), config=GenerationConfig(schema={"type": "chart"})),
        job(MIXED[2]),
    ]
    first, *failed, last = served.do(answers(engine, jobs))
    assert [each.code for each in failed] == [
        "image_unsupported",
        "invalid_request",
        "invalid_request",
        "context_length_exceeded",
        "invalid_request",
    ]
    assert "data: URL" in failed[1].message
    config = GenerationConfig(max_new_tokens=8)
    assert [first.token_ids, last.token_ids] == [tiny.chat(each, config=config).token_ids for each in MIXED[1:3]]


# A crowd, and those who leave


def test_past_slots_and_queue_the_rest_is_refused_at_once_and_no_other(served, engine, tiny):
    """H6."""

    async def crowd():
        runs, refused = [], 0
        for number in range(3 + 4 + 50):
            try:
                runs.append(engine.run(job(MIXED[number % 8])))
            except QueueFull:
                refused += 1
        assert refused == 50
        return [events[-1].token_ids for events in await asyncio.gather(*map(events_of, runs))]

    config = GenerationConfig(max_new_tokens=8)
    assert served.do(crowd()) == [tiny.chat(MIXED[place % 8], config=config).token_ids for place in range(7)]


def test_who_leaves_frees_the_slot_at_once_and_gets_no_step_more(served, engine, tiny):
    """H7: in the middle of a reply, before its first token, and while it waits."""

    async def leave():
        runs = [engine.run(LONG) for _ in range(7)]
        assert (engine.stats().running, engine.stats().waiting) == (3, 4)
        async for event in runs[0]:
            if isinstance(event, Piece):
                break
        for leaving in (runs[0], runs[1], runs[5], runs[6]):
            await leaving.aclose()
        assert (engine.stats().running, engine.stats().waiting) == (3, 0)
        for leaving in runs:
            await leaving.aclose()
            await leaving.aclose()
        assert busy(engine) == 0
        assert [event async for event in runs[2]] == []
        # The worker is free too: what comes next does not wait for a long reply's end.
        tokens = engine.stats().tokens
        (after,) = await answers(engine, [job(MIXED[0], 3)])
        assert engine.stats().tokens == tokens + after.num_tokens
        return after.token_ids

    assert served.do(leave()) == tiny.chat(MIXED[0], config=GenerationConfig(max_new_tokens=3)).token_ids


def test_a_run_that_was_never_read_is_cancelled_by_closing_it(served, engine):
    async def close():
        run = engine.run(LONG)
        await run.aclose()
        return busy(engine)

    assert served.do(close()) == 0


def test_a_job_past_its_time_ends_and_frees_its_slot(served, engine):
    async def late():
        engine.options = replace(engine.options, timeout_s=0.05, num_slots=1)
        return await answers(engine, [LONG, LONG])

    assert served.do(late()) == [module.TIMED_OUT] * 2
    assert busy(engine) == 0


# A worker that dies


def test_a_killed_worker_costs_the_running_jobs_and_no_other(served, engine, tiny):
    """H10: those that wait are answered by the process that takes its place, and so are new ones."""
    before = engine.stats().restarts

    async def kill():
        running = [engine.run(LONG) for _ in range(3)]
        waiting = [engine.run(job(messages)) for messages in MIXED[:3]]
        await anext(running[0])
        os.kill(engine._worker.pid, signal.SIGKILL)
        lost = [(await events_of(run))[-1] for run in running]
        assert not engine.ready
        late = engine.run(job(MIXED[3]))
        return lost, [(await events_of(run))[-1].token_ids for run in [*waiting, late]]

    lost, found = served.do(kill())
    config = GenerationConfig(max_new_tokens=8)
    assert lost == [module.LOST] * 3
    assert found == [tiny.chat(messages, config=config).token_ids for messages in MIXED[:4]]
    assert engine.stats().restarts == before + 1
    assert engine.ready


def test_signals_to_the_whole_group_do_not_end_the_worker(served, engine, tiny):
    """H9: a supervisor signals every process, and running requests must still be answered."""

    async def signalled():
        run = engine.run(job(MIXED[1], 50))
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(engine._worker.pid, number)
        return (await events_of(run))[-1].token_ids

    expected = tiny.chat(MIXED[1], config=GenerationConfig(max_new_tokens=50)).token_ids
    assert served.do(signalled()) == expected
    assert engine.ready


def test_a_worker_that_hangs_is_replaced(served, engine, monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.3)
    before, worker = engine.stats().restarts, engine._worker

    async def hang():
        os.kill(worker.pid, signal.SIGSTOP)
        engine.options = replace(engine.options, timeout_s=0.1)
        (event,) = await answers(engine, [LONG])
        await until(lambda: engine.stats().restarts > before)
        return event

    assert served.do(hang()) == module.TIMED_OUT
    assert engine._worker is not worker


def test_a_worker_that_only_works_long_is_not_taken_for_one_that_hangs(served, engine, monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 5)
    before = engine.stats().restarts

    async def late():
        engine.options = replace(engine.options, timeout_s=0.2)
        await answers(engine, [LONG])
        engine.options = replace(engine.options, timeout_s=100)
        await asyncio.sleep(5.2)
        return await answers(engine, [job(MIXED[0], 2)])

    assert isinstance(served.do(late())[0], Finished)
    assert engine.stats().restarts == before


def test_a_model_that_cannot_be_loaded_is_said_and_not_tried_again(tmp_path):
    served = Served(source=str(tmp_path))
    try:
        (event,) = served.do(answers(served.engine, [job(user("x"))]))
        assert (event.code, busy(served.engine)) == ("checkpoint_invalid", 0)
        assert served.engine.failure == event
        assert served.do(answers(served.engine, [job(user("x"))])) == [event]
        assert not served.engine.ready
        assert served.engine.stats().restarts == 0
    finally:
        served.close()


PARENT = """
import asyncio, sys, time
from vlm.serving.engine import Engine
from vlm.serving.settings import EngineOptions
async def main():
    engine = Engine(EngineOptions(source=sys.argv[1]))
    await engine.start()
    print(engine._worker.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_the_worker_goes_when_the_server_is_killed(folder):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)
    with parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if (Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split() or ["Z"])[0] == "Z":
            return  # dead, and nobody has asked for its status
        time.sleep(0.05)
    pytest.fail("the worker outlived the server")


# The end


def test_draining_answers_what_was_taken_in_and_refuses_the_rest(folder, tiny):
    """H9; and what is not answered in time is told so."""
    served = Served(source=str(folder), num_slots=2)
    engine = served.engine

    async def drain():
        runs = [engine.run(job(messages)) for messages in MIXED[:4]]
        await anext(runs[0])
        worker = engine._worker
        draining = asyncio.create_task(engine.drain(DEADLINE_S))
        await asyncio.sleep(0)
        assert engine.draining
        with pytest.raises(Draining):
            engine.run(LONG)
        found = [(await events_of(run))[-1].token_ids for run in runs]
        await draining
        assert worker._process.poll() == 0
        return found

    config = GenerationConfig(max_new_tokens=8)
    found = served.do(drain())
    assert found == [tiny.chat(messages, config=config).token_ids for messages in MIXED[:4]]
    assert not engine.ready
    served.runner.close()

    async def cut_short():
        engine = Engine(EngineOptions(source=str(folder), num_slots=1))
        await engine.start()
        runs = [engine.run(LONG) for _ in range(2)]
        await engine.drain(0.01)
        return [(await events_of(run))[-1] for run in runs]

    assert asyncio.run(cut_short()) == [module.STOPPED] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"num_slots": 0},
        {"num_slots": 1.5},
        {"max_queue": -1},
        {"max_new_tokens": 0},
        {"timeout_s": 0},
        {"timeout_s": "x"},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(VLMError, match=next(iter(options))) as caught:
        EngineOptions(**options)
    assert caught.value.code == "invalid_request"
