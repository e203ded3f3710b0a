"""From the jobs of one request to its response, whole or streamed; a client that leaves frees its places at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vlm.serving.http.json_text import json_response
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
from vlm.serving.refusal import Refusal, internal_error

MAX_RETRY_AFTER_S = 30


@dataclass
class Choice:
    """One reply as far as it has come."""

    index: int
    prompt: int
    """Which prompt of the request it answers; several choices may answer the same."""
    num_prompt_tokens: int = 0
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ReplyFormat(Protocol):
    """How an API writes replies."""

    media_type: str
    """Of a stream."""

    def opening(self, choice: Choice) -> dict | None:
        """Return what a stream begins a choice with."""

    def piece(self, choice: Choice, piece: Piece) -> dict:
        """Return what a stream says of a step."""

    def ending(self, choice: Choice) -> dict:
        """Return what a stream ends a choice with."""

    def closing(self, choices: list[Choice]) -> list[bytes]:
        """Return the frames after the last choice's end."""

    def frame(self, chunk: dict) -> bytes:
        """Return a chunk as it goes over the wire."""

    def error(self, refusal: Refusal) -> dict:
        """Return what a stream that broke off ends with."""

    def whole(self, choices: list[Choice]) -> dict:
        """Return the response that is not streamed."""


class GenerationResponse(Response):
    """Runs jobs and writes what comes of them."""

    def __init__(self, engine, jobs: Sequence[Job], format: ReplyFormat, *, prompts: Sequence[int], stream: bool):
        """prompts: which of the request's prompts each of `jobs` answers."""
        self.background = None
        self._engine, self._jobs, self._format, self._stream = engine, jobs, format, stream
        self._choices = [Choice(index, prompt) for index, prompt in enumerate(prompts)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        noted, began = scope["access"], time.monotonic()
        try:
            async with _running(self._engine, self._jobs, receive) as events:
                events = self._noting(events, noted, began)
                if self._stream:
                    await self._write_stream(events, noted, send)
                else:
                    async for choice, event in events:
                        _take(choice, event)
                    await json_response(self._format.whole(self._choices))(scope, receive, send)
        except _ClientLeft:
            noted["left"] = True

    async def _noting(self, events, noted: dict, began: float) -> AsyncIterator[tuple[Choice, Event]]:
        """Yield (choice, event), and note for the log how far it came."""
        noted.update(prompt_tokens=0, tokens=0)
        async for index, event in events:
            choice = self._choices[index]
            if isinstance(event, Started):
                noted["prompt_tokens"] += event.num_prompt_tokens
            elif isinstance(event, Piece):
                noted.setdefault("first_token_s", round(time.monotonic() - began, 4))
            elif isinstance(event, Finished):
                noted["tokens"] += event.num_tokens
                noted["finish_reason"] = event.finish_reason
            yield choice, event

    async def _write_stream(self, events, noted: dict, send: Send) -> None:
        """Write events as they come; what fails before the first gets a status of its own."""
        is_open = False
        try:
            async for choice, event in events:
                frames = self._frames(choice, event)
                if not is_open:
                    await send(_stream_start(self._format.media_type))
                    is_open = True
                for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            for frame in self._format.closing(self._choices):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except Exception as error:
            if not is_open or isinstance(error, _ClientLeft):
                raise
            refusal = error if isinstance(error, Refusal) else internal_error(noted["id"])
            noted["error"] = refusal.code
            frame = self._format.frame(self._format.error(refusal))
            await send({"type": "http.response.body", "body": frame, "more_body": False})
            if refusal is not error:
                raise
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _frames(self, choice: Choice, event: Event) -> list[bytes]:
        """Return what the stream says of an event. Raises: Refusal."""
        _take(choice, event)
        chunk = None
        if isinstance(event, Started):
            chunk = self._format.opening(choice)
        elif isinstance(event, Piece) and (event.text or event.logprobs):
            chunk = self._format.piece(choice, event)
        elif isinstance(event, Finished):
            chunk = self._format.ending(choice)
        return [] if chunk is None else [self._format.frame(chunk)]


def _take(choice: Choice, event: Event) -> None:
    """Put an event into its choice. Raises: Refusal for a failed job."""
    if isinstance(event, Failed):
        raise Refusal.of(event)
    if isinstance(event, Started):
        choice.num_prompt_tokens = event.num_prompt_tokens
    elif isinstance(event, Piece):
        choice.pieces.append(event.text)
        choice.logprobs += event.logprobs
    else:
        choice.finished = event


class _ClientLeft(Exception):
    """Nobody waits for the response any more."""


@contextlib.asynccontextmanager
async def _running(engine, jobs: Sequence[Job], receive: Receive) -> AsyncIterator[AsyncIterator[tuple[int, Event]]]:
    """Run jobs and give (which, event) as they come; whatever ends the block, no job outlives it.

    Raises: Refusal (429, 503) where one finds no place; _ClientLeft from the events.
    """
    runs, tasks = [], []
    try:
        for job in jobs:
            runs.append(_run(engine, job))
        queue: asyncio.Queue = asyncio.Queue()
        tasks = [asyncio.create_task(_forward(index, run, queue)) for index, run in enumerate(runs)]
        tasks.append(asyncio.create_task(_watch(receive, queue)))
        yield _merged(queue, len(runs))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in runs:
            await run.aclose()


def _run(engine, job: Job) -> AsyncIterator[Event]:
    try:
        return engine.run(job)
    except QueueFull:
        stats = engine.stats()
        wait_s = min(MAX_RETRY_AFTER_S, max(1, stats.waiting // max(1, stats.num_slots)))
        message = f"all {stats.num_slots} slots and {stats.max_queue} places to wait are taken; try again soon"
        raise Refusal(429, "queue_full", message, headers={"retry-after": str(wait_s)}) from None
    except Draining:
        message = "the server is about to stop and takes no new requests; ask another, or try again soon"
        raise Refusal(503, "draining", message, headers={"retry-after": "5"}) from None


async def _forward(index: int, run: AsyncIterator[Event], queue: asyncio.Queue) -> None:
    """Put the events of a run into `queue`; so the run never waits for a client that reads slowly."""
    event = None
    try:
        async for event in run:
            queue.put_nowait((index, event))
        if not isinstance(event, Finished | Failed):
            raise RuntimeError("a run ended without an end")
    except Exception as error:  # noqa: BLE001  handed over, and raised where the events are read
        queue.put_nowait((index, error))


async def _watch(receive: Receive, queue: asyncio.Queue) -> None:
    """Put a word into `queue` when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    queue.put_nowait((-1, _ClientLeft()))


async def _merged(queue: asyncio.Queue, num_runs: int) -> AsyncIterator[tuple[int, Event]]:
    while num_runs:
        index, event = await queue.get()
        if isinstance(event, Exception):
            raise event
        num_runs -= isinstance(event, Finished | Failed)
        yield index, event


def _stream_start(media_type: str) -> dict:
    headers = {
        "content-type": media_type,
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        # nginx would collect the pieces and pass them on together.
        "x-accel-buffering": "no",
    }
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": encoded}
