"""The asyncio side of the model: a bounded queue in front of a worker process that is replaced when it dies."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vlm.serving.model_process.job import Draining, Event, Failed, Finished, Job, QueueFull, Started
from vlm.serving.model_process.messages import (
    Cancel,
    ImageCounts,
    Ready,
    Refused,
    Report,
    ServedInfo,
    Stop,
    Submit,
)
from vlm.serving.model_process.process import END_S, WorkerProcess
from vlm.serving.settings import EngineOptions

MAX_FIRST_STARTS = 4
"""How often a model is loaded that never was ready, before it is given up."""
MAX_RESTART_WAIT_S = 30.0
"""Longest wait before the next try, for a worker that dies again and again before it is ready."""
SILENCE_S = 60.0
"""A worker that does not answer for so long is taken for dead."""

LOST = Failed("worker_lost", "the process that answers ended in the middle of this request; send it again")
TIMED_OUT = Failed("timed_out", "the request was not answered in the time this server allows; ask for less, or later")
NEVER_READY = Failed(
    "device_unavailable",
    f"the process that loads the model ended {MAX_FIRST_STARTS} times before it was ready; the log says why, and where "
    "it says nothing, the system ended it for want of memory: take a smaller model, or --quantize int8 or int4",
)
STOPPED = Failed("worker_lost", "the server stopped before this request was answered; send it again")


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What the engine does, and what it did since it was started."""

    running: int
    """Jobs that have a slot."""
    waiting: int
    num_slots: int
    max_queue: int
    restarts: int
    tokens: int
    """Of replies that came to their end."""
    prompt_tokens: int
    image_hits: int
    """How often an image was found encoded."""
    image_misses: int
    image_bytes: int
    """Held by encoded images now."""


class Engine:
    """Answers jobs in a worker process. Everything here belongs to one event loop, which is never held up."""

    def __init__(self, options: EngineOptions):
        self.options = options
        self.draining = False
        self.failure: Failed | None = None
        """Why there is no model and will be none."""
        self.info: ServedInfo | None = None
        """Of the model; None until it was loaded."""
        self._worker: WorkerProcess | None = None
        self._is_ready = False
        self._running: dict[int, JobEvents] = {}
        self._waiting: deque[JobEvents] = deque()
        self._idle = asyncio.Event()
        self._num_jobs = self._restarts = self._failed_starts = 0
        self._tokens = self._prompt_tokens = 0
        self._images, self._images_before = ImageCounts(), ImageCounts()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._is_ready

    async def start(self) -> None:
        """Begin to load the model; `ready` tells when it is."""
        self._idle.set()
        self._start_worker()

    def run(self, job: Job) -> AsyncIterator[Event]:
        """Return the events of `job`, which gets a slot or a place in the queue now; close it to cancel.

        Raises: QueueFull, Draining.
        """
        if self.draining:
            raise Draining
        if len(self._running) + len(self._waiting) >= self.options.num_slots + self.options.max_queue:
            raise QueueFull
        self._num_jobs += 1
        events = JobEvents(self, self._num_jobs, job)
        if self.failure is not None:
            events.put(self.failure)
            return events
        events.timer = asyncio.get_running_loop().call_later(self.options.timeout_s, self._time_out, events)
        self._idle.clear()
        self._waiting.append(events)
        self._dispatch()
        return events

    async def drain(self, timeout_s: float) -> None:
        """Take no more jobs, wait until those taken in are answered, and stop the worker."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            for events in [*self._running.values(), *self._waiting]:
                self._end(events, STOPPED)
        worker, self._worker, was_ready, self._is_ready = self._worker, None, self._is_ready, False
        if worker is not None:
            worker.send(Stop())
            await worker.wait(END_S if was_ready else 0.0)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            num_slots=self.options.num_slots,
            max_queue=self.options.max_queue,
            restarts=self._restarts,
            tokens=self._tokens,
            prompt_tokens=self._prompt_tokens,
            image_hits=self._images_before.hits + self._images.hits,
            image_misses=self._images_before.misses + self._images.misses,
            image_bytes=self._images.num_bytes,
        )

    # Jobs

    def _dispatch(self) -> None:
        """Give the slots that are free to those who wait longest."""
        while self._is_ready and self._waiting and len(self._running) < self.options.num_slots:
            events = self._waiting.popleft()
            self._running[events.key] = events
            self._worker.send(Submit(events.key, events.job))

    def _end(self, events: "JobEvents", last: Event) -> None:
        self._forget(events)
        events.put(last)

    def _cancel(self, events: "JobEvents") -> None:
        """Let go of a job: its slot is free at once, and the worker stops with it before its next step."""
        was_running = events.key in self._running
        if self._forget(events) and was_running:
            self._worker.send(Cancel(events.key))
            self._dispatch()

    def _forget(self, events: "JobEvents") -> bool:
        """Take a job off the books; False where it was not on them any more."""
        if self._running.pop(events.key, None) is None:
            if events not in self._waiting:
                return False
            self._waiting.remove(events)
        events.timer.cancel()
        if not self._running and not self._waiting:
            self._idle.set()
        return True

    def _time_out(self, events: "JobEvents") -> None:
        events.put(TIMED_OUT)
        worker, loop = self._worker, asyncio.get_running_loop()
        was_running, asked_at = events.key in self._running, loop.time()
        self._cancel(events)
        if was_running:
            # The worker answers a cancelled job with a report. One that says nothing at all hangs.
            loop.call_later(SILENCE_S, lambda: worker.kill() if worker.heard_at < asked_at else None)

    # The worker

    def _start_worker(self) -> None:
        if not self.draining or self._waiting:
            self._worker = WorkerProcess(self.options, self._hear, self._lose)

    def _hear(self, worker: WorkerProcess, message: Ready | Refused | Report) -> None:
        if worker is not self._worker:
            return
        if isinstance(message, Ready):
            self.info, self._is_ready, self._failed_starts = message.info, True, 0
        elif isinstance(message, Refused):
            self._give_up(Failed(message.code, message.message))
        else:
            self._images = message.images
            for key, event in message.events:
                self._pass_on(key, event)
        self._dispatch()

    def _give_up(self, failure: Failed) -> None:
        """Say to all who wait, and who will ask, that there will be no model."""
        self.failure = failure
        for events in [*self._waiting]:
            self._end(events, failure)

    def _pass_on(self, key: int, event: Event) -> None:
        events = self._running.get(key)
        if events is None:
            return  # it was cancelled meanwhile
        if isinstance(event, Started):
            self._prompt_tokens += event.num_prompt_tokens
        elif isinstance(event, Finished):
            self._tokens += event.num_tokens
        if isinstance(event, Finished | Failed):
            self._end(events, event)
        else:
            events.put(event)

    def _lose(self, worker: WorkerProcess) -> None:
        """Let the jobs that were being answered fail, and start a new process for those that wait."""
        if worker is not self._worker:
            return
        before, now = self._images_before, self._images
        self._images_before = ImageCounts(before.hits + now.hits, before.misses + now.misses)
        self._images = ImageCounts()
        wait_s = 0.0
        if not self._is_ready:
            self._failed_starts += 1
            wait_s = min(MAX_RESTART_WAIT_S, 2.0 ** (self._failed_starts - 1))
        self._is_ready, self._worker = False, None
        for events in [*self._running.values()]:
            self._end(events, LOST)
        if self.info is None and self._failed_starts == MAX_FIRST_STARTS:
            self._give_up(NEVER_READY)
        if self.failure is None:
            self._restarts += 1
            asyncio.get_running_loop().call_later(wait_s, self._start_worker)


class JobEvents:
    """The events of one job, an asynchronous iterator."""

    def __init__(self, engine: Engine, key: int, job: Job):
        self.key, self.job = key, job
        self.timer: asyncio.TimerHandle | None = None
        self._engine = engine
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._is_over = False

    def put(self, event: Event) -> None:
        self._queue.put_nowait(event)

    def __aiter__(self) -> "JobEvents":
        return self

    async def __anext__(self) -> Event:
        if self._is_over:
            raise StopAsyncIteration
        event = await self._queue.get()
        self._is_over = isinstance(event, Finished | Failed)
        return event

    async def aclose(self) -> None:
        """Cancel the job, unless it has come to its end."""
        self._is_over = True
        self._engine._cancel(self)
