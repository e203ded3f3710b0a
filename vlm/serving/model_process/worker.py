"""The process that holds the model: it takes jobs from the server, and tells what comes of them, step by step.

It ends when the server does, whichever way that ends, and with any fault that is not one request's own: then a fresh
process takes its place. What goes through the pipe are pickles, which only these two processes write.
"""

import logging
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from vlm import checkpoint
from vlm.errors import VLMError, is_out_of_memory
from vlm.images.cache import ImageCache
from vlm.pipeline import DEFAULT_MODEL, VLM
from vlm.serving.http.json_lines import log_to
from vlm.serving.model_process.batcher import Batcher, Events
from vlm.serving.model_process.job import Failed, Finished
from vlm.serving.model_process.job_reader import JobReader
from vlm.serving.model_process.messages import Cancel, ImageCounts, Ready, Refused, Report, ServedInfo, Stop, Submit
from vlm.serving.model_process.running_batch import Row
from vlm.serving.settings import EngineOptions

DEFAULT_NAME = "sightline"

_LOADING = ("device", "dtype", "quantize", "kv_cache_dtype", "reference", "allow_urls", "low_memory", "adapters")
_LOADING += ("num_views", "thin")
"""Options that `VLM.from_pretrained` has by the same names."""


class Worker:
    """Answers jobs until it is told to stop."""

    def __init__(self, vlm: VLM, connection: Connection, inbox: queue.SimpleQueue, options: EngineOptions):
        self._connection, self._inbox = connection, inbox
        self._batcher = Batcher(vlm.model, vlm.tokenizer, options.num_slots)
        self._images = None
        if vlm.images is not None:
            self._images = vlm.images.cache = CountingCache(vlm.images.cache.max_bytes)
        self._reader = JobReader(vlm, options, lambda key, row: self._inbox.put((key, row)))
        self._open: set[int] = set()
        """Jobs that neither ended nor were cancelled."""

    def run(self) -> None:
        while True:
            events: Events = []
            for message in self._messages():
                if isinstance(message, Stop):
                    self._reader.close()
                    return
                events += self._handle(message)
            events += self._batcher.step()
            self._open -= {key for key, event in events if isinstance(event, Finished | Failed)}
            if events:
                self._report(events)

    def _messages(self) -> Iterator[object]:
        """Yield what came in; wait for it only when there is nothing to compute."""
        if self._batcher.is_idle:
            yield self._inbox.get()
        while not self._inbox.empty():
            yield self._inbox.get()

    def _handle(self, message: Submit | Cancel | tuple[int, Row | Failed]) -> Events:
        if isinstance(message, Submit):
            self._open.add(message.key)
            self._reader.submit(*message)
            return []
        if isinstance(message, Cancel):
            self._open.discard(message.key)
            self._reader.forget(message.key)
            self._batcher.cancel(message.key)
            self._report([])
            return []
        key, row = message
        self._reader.forget(key)
        if key not in self._open:
            return []
        if isinstance(row, Failed):
            return [(key, row)]
        self._batcher.add(row)
        return []

    def _report(self, events: Events) -> None:
        send(self._connection, Report(events, self._images.counts if self._images else ImageCounts()))


class CountingCache(ImageCache):
    """An image cache that counts how often it had what was asked for."""

    _hits = _misses = 0

    def get(self, key: str):
        entry = super().get(key)
        self._hits, self._misses = self._hits + (entry is not None), self._misses + (entry is None)
        return entry

    @property
    def counts(self) -> ImageCounts:
        return ImageCounts(self._hits, self._misses, self.num_bytes)


def main() -> None:
    """Serve one model over the socket whose number is the first argument."""
    log_to(sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal or a supervisor tells the whole group; the server lets what is running end, then stops this one.
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    status = 1
    try:
        options = pickle.loads(connection.recv_bytes())
        inbox: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=receive, args=(connection, inbox), daemon=True).start()
        try:
            vlm, info = open_model(options)
        except VLMError as error:
            send(connection, Refused(error.code, error.message))
        else:
            send(connection, Ready(info))
            Worker(vlm, connection, inbox, options).run()
            status = 0
    except EOFError:
        pass
    except BaseException:
        # Whatever it is, a library's state may be spoilt (after a CUDA error it is): go, and come back fresh.
        logging.getLogger("vlm.serving").error("the worker ended", exc_info=True)
    # Threads may still wait for a picture from far away.
    os._exit(status)


def open_model(options: EngineOptions) -> tuple[VLM, ServedInfo]:
    """Return the model, and what clients may know of it. Raises: VLMError."""
    source = options.source
    folder = DEFAULT_MODEL if source is None else checkpoint.resolve(source)
    vlm = load(folder, options)
    name = DEFAULT_NAME if source is None else Path(source).resolve().name if Path(source).is_dir() else str(source)
    info = vlm.info
    return vlm, ServedInfo(
        name=name,
        max_context=info.max_context,
        dtype=str(info.dtype).removeprefix("torch."),
        num_parameters=info.num_parameters,
        num_bytes=info.num_bytes,
        has_images=vlm.images is not None,
    )


def load(folder: Path, options: EngineOptions) -> VLM:
    """Return the model. Raises: VLMError, also for one that does not fit: another try would end the same way."""
    try:
        return VLM.from_pretrained(folder, **{name: getattr(options, name) for name in _LOADING})
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise VLMError(
            "device_unavailable",
            f"the model does not fit the memory that is free on the device ({options.device}); expected room for its "
            "weights; free some, give --quantize int8 or int4, or take a smaller model",
        ) from None


def receive(connection: Connection, inbox: queue.SimpleQueue) -> None:
    """Pass on what the server says; leave with it, even while the model is loaded or in the middle of a step."""
    try:
        while True:
            inbox.put(pickle.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(1)


def send(connection: Connection, message: object) -> None:
    connection.send_bytes(pickle.dumps(message))


if __name__ == "__main__":
    main()
