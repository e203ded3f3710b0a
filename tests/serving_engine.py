"""An engine without a model, for tests of the HTTP side: it plays what a test scripts. And a real server around it."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace

from vlm.generation.reply import Timings
from vlm.serving.app import create_app
from vlm.serving.http.server import HTTPServer
from vlm.serving.model_process.job import (
    Draining,
    Event,
    Failed,
    Finished,
    Job,
    Piece,
    QueueFull,
    Started,
    TokenLogprob,
)
from vlm.serving.model_process.messages import ServedInfo
from vlm.serving.settings import ServerSettings

HOLD = "hold"
"""In a script: wait until the test calls `release`."""
TIMINGS = Timings(encode_s=0.25, prefill_s=0.5, decode_s=1.5, tokens_per_s=2.0)


@dataclass(frozen=True)
class Stats:
    running: int
    waiting: int
    num_slots: int
    max_queue: int
    restarts: int = 0
    tokens: int = 0
    prompt_tokens: int = 0


def spoken(*pieces: str, finish_reason: str = "stop", top: int | None = None) -> list[Event]:
    """Return the events of a reply made of `pieces`, a token each."""
    said = [Piece(text, [] if top is None else [logprob(text, top)]) for text in pieces]
    end = Finished(finish_reason, len(pieces), 0.5, TIMINGS, list(range(len(pieces))))
    return [Started(7), *said, end]


def logprob(text: str, top: int) -> TokenLogprob:
    alternatives = [(f"{text}{place}", f"{text}{place}".encode(), -1.0 - place) for place in range(top)]
    return TokenLogprob(text, text.encode(), -0.5, alternatives)


def echo(job: Job) -> list[Event]:
    """Answer with the last text of the prompt, in two pieces."""
    text = texts(job)[-1]
    return spoken("re: ", text, top=job.top_logprobs)


def texts(job: Job) -> list[str]:
    """Return the texts of a job's prompt in their order."""
    if job.parts is not None:
        return [part for part in job.parts if isinstance(part, str)]
    return [part["text"] for turn in job.messages for part in turn["content"] if part["type"] == "text"]


class ScriptedEngine:
    """The interface of `vlm.serving.engine.Engine`."""

    def __init__(self, script: Callable[[Job], list] = echo, *, num_slots: int = 2, max_queue: int = 2):
        self.script, self.num_slots, self.max_queue = script, num_slots, max_queue
        self.ready, self.draining, self.failure = True, False, None
        self.info = ServedInfo(
            name="scripted",
            max_context=4096,
            dtype="bfloat16",
            num_parameters=10_642_941_475,
            num_bytes=21_285_882_950,
            has_images=True,
        )
        self.jobs: list[Job] = []
        self.running = self.waiting = 0
        self.ended: list[str] = []
        """How each run ended: "whole" or "cut"."""

    async def start(self) -> None:
        self._loop, self._released = asyncio.get_running_loop(), asyncio.Event()
        self._slots = asyncio.Semaphore(self.num_slots)

    def run(self, job: Job) -> AsyncIterator[Event]:
        if self.draining:
            raise Draining
        if self.running + self.waiting >= self.num_slots + self.max_queue:
            raise QueueFull
        self.jobs.append(job)
        self.waiting += 1
        return _Run(self, self._play(job))

    async def _play(self, job: Job) -> AsyncIterator[Event]:
        has_slot, end = False, "cut"
        try:
            await self._slots.acquire()
            has_slot = True
            self.waiting, self.running = self.waiting - 1, self.running + 1
            for step in self.script(job):
                if step == HOLD:
                    await self._released.wait()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    if isinstance(step, Finished | Failed):
                        end = "whole"
                    yield step
        finally:
            if has_slot:
                self.running -= 1
                self._slots.release()
            else:
                self.waiting -= 1
            self.ended.append(end)

    async def drain(self, timeout_s: float) -> None:
        self.draining = True
        deadline = time.monotonic() + timeout_s
        while (self.running or self.waiting) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def stats(self) -> Stats:
        return Stats(self.running, self.waiting, self.num_slots, self.max_queue)

    # For the tests

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    def wait_until(self, condition: Callable[["ScriptedEngine"], bool]) -> None:
        wait_until(lambda: condition(self))


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class _Run:
    """A run, which may be closed before anyone asked for its first event."""

    def __init__(self, engine: ScriptedEngine, events: AsyncIterator[Event]):
        self._engine, self._events, self._began = engine, events, False

    def __aiter__(self) -> "_Run":
        return self

    async def __anext__(self) -> Event:
        self._began = True
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        if not self._began:
            self._began = True
            self._engine.waiting -= 1
            self._engine.ended.append("cut")


class RunningServer:
    """A server on a port of its own, in a thread of its own."""

    def __init__(self, engine, settings: ServerSettings):
        self.engine = engine
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = HTTPServer(create_app(engine, settings), engine, settings)
        self._thread = threading.Thread(target=self.http.run, kwargs={"sockets": [self._listener]}, daemon=True)

    def start(self) -> "RunningServer":
        self._thread.start()
        wait_until(lambda: self.http.started)
        return self

    def begin_drain(self) -> None:
        self.http._loop.call_soon_threadsafe(self.http.begin_drain)

    def join(self) -> None:
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    def send(self, raw: bytes, *, more: Callable[[socket.socket], None] | None = None) -> bytes:
        """Return everything the server says to `raw` until it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connected:
            connected.sendall(raw)
            if more is not None:
                more(connected)
            return received(connected)


def received(connected: socket.socket, until: bytes | None = None) -> bytes:
    """Return what comes until it ends with `until`, or until the other side closes."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while (until is None or not answer.endswith(until)) and (block := connected.recv(65536)):
            answer += block
    return answer


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an HTTP request after which the connection closes."""
    named = {"Host": "localhost", "Connection": "close", **{k.replace("_", "-"): v for k, v in headers.items()}}
    if body:
        named = {"Content-Type": "application/json", "Content-Length": str(len(body)), **named}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error_of(answer: bytes) -> dict:
    """Return the error of an answer, after a look at its form."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head, answer
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) <= 300
    assert "Traceback" not in error["message"]
    assert "0x" not in error["message"]
    return error


@contextlib.contextmanager
def serving(script=echo, *, num_slots: int = 2, max_queue: int = 2, **settings) -> Iterator[RunningServer]:
    """Run a server around a scripted engine."""
    engine = ScriptedEngine(script, num_slots=num_slots, max_queue=max_queue)
    server = RunningServer(engine, replace(ServerSettings(drain_s=5.0), **settings)).start()
    try:
        yield server
    finally:
        # A test may have ended it already.
        with contextlib.suppress(RuntimeError):
            engine.release()
            server.begin_drain()
        server.join()
