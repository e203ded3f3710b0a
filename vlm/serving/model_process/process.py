"""The server's side of the worker process: starting it, and talking to it without ever holding up the event loop."""

import asyncio
import pickle
import queue
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

from vlm.child_process import start_child
from vlm.serving.settings import EngineOptions

END_S = 5.0
"""How long a process may take to end by itself."""


class WorkerProcess:
    """One process that holds the model. What it says is handed to the event loop that started it."""

    def __init__(
        self,
        options: EngineOptions,
        on_message: Callable[["WorkerProcess", object], None],
        on_end: Callable[["WorkerProcess"], None],
    ):
        """Start it. `on_message` and `on_end` are called in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_end = on_message, on_end
        self.heard_at = self._loop.time()
        """When it said something last, by the loop's clock."""
        self._process, self._connection = start_child("vlm.serving.model_process.worker")
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        for work in (self._write, self._read):
            threading.Thread(target=work, name="worker-pipe", daemon=True).start()
        self.send(options)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: object) -> None:
        """Pass a message on, after those sent before; returns at once."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End the process at once; `on_end` follows."""
        self._process.kill()

    async def wait(self, timeout_s: float) -> None:
        """Wait for the process to end, and kill it when it takes too long."""
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, timeout_s)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def _write(self) -> None:
        # A process that is gone is noticed by the reading thread.
        with suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self._connection.send_bytes(pickle.dumps(message))

    def _read(self) -> None:
        try:
            while True:
                self._tell(self._hear, pickle.loads(self._connection.recv_bytes()))
        except (EOFError, OSError, pickle.UnpicklingError):
            # What is cut in the middle of a message counts as an end too.
            self._process.kill()
            self._process.wait()
        self._outbox.put(None)
        self._tell(self._on_end, self)

    def _hear(self, message: object) -> None:
        self.heard_at = self._loop.time()
        self._on_message(self, message)

    def _tell(self, function: Callable, *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server is gone, and nobody is left to tell
            self._loop.call_soon_threadsafe(function, *arguments)
