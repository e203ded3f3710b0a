"""Runs the jobs of one request together; a client that leaves frees its places at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.types import Receive

from vlm.serving.model_process.job import Draining, Event, Failed, Finished, Job, QueueFull
from vlm.serving.refusal import Refusal

MAX_RETRY_AFTER_S = 30


class ClientLeft(Exception):
    """Nobody waits for the response any more."""


@contextlib.asynccontextmanager
async def running(engine, jobs: Sequence[Job], receive: Receive) -> AsyncIterator[AsyncIterator[tuple[int, Event]]]:
    """Run jobs and give (which, event) as they come; whatever ends the block, no job outlives it.

    Raises: Refusal (429, 503) where one finds no place; ClientLeft from the events.
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
    queue.put_nowait((-1, ClientLeft()))


async def _merged(queue: asyncio.Queue, num_runs: int) -> AsyncIterator[tuple[int, Event]]:
    while num_runs:
        index, event = await queue.get()
        if isinstance(event, Exception):
            raise event
        num_runs -= isinstance(event, Finished | Failed)
        yield index, event
