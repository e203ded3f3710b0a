"""A process that holds the model. A sample that crashes it, or hangs, takes nothing else along.

Requests go to it as pickles; what it says comes back as JSON: the pictures of a benchmark are opened in there, and
what an image might take over must not take over the process that keeps the log.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from vlm.child_process import start_child
from vlm.errors import VLMError

if TYPE_CHECKING:
    from eval.backends.checkpoint_model import CheckpointModel
    from eval.backends.model_answers import ModelAnswers, Request

PARENT_CHECK_S = 0.5


class WorkerLost(Exception):
    """The process ended, or did not answer in time; the text says how."""


class Worker:
    """The parent's side of one process that holds the model."""

    def __init__(self, model: "CheckpointModel", *, identify: bool):
        """Start the process; it loads `model`, and with `identify` its digests, while the caller goes on."""
        self._process, self._connection = start_child("eval.backends.worker")
        self._ready: dict | None = None
        self.started_s = 0.0
        """How long the start took."""
        self._since = time.monotonic()
        self._send({"model": model, "identify": identify})

    def ready(self) -> dict:
        """Return what the process says of itself and its model, once that is loaded.

        Raises: WorkerLost; VLMError where the model cannot be opened.
        """
        if self._ready is None:
            ready = self._receive(None)
            if "refused" in ready:
                raise VLMError(ready["refused"]["code"], ready["refused"]["message"])
            self._ready = ready
            self.started_s = time.monotonic() - self._since
        return self._ready

    def ask(self, request: "Request", timeout_s: float) -> list[dict]:
        """Return what came of each question of `request`. Raises: WorkerLost."""
        self.ready()
        self._send(request)
        return self._receive(timeout_s)["outcomes"]

    def stop(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _send(self, value: object) -> None:
        with suppress(OSError):  # a process that is gone is noticed when its answer is read
            self._connection.send_bytes(pickle.dumps(value))

    def _receive(self, timeout_s: float | None) -> dict:
        try:
            if not self._connection.poll(timeout_s):
                raise WorkerLost(f"gave no answer within {timeout_s:.3g} s; raise --timeout if the model is slow")
            message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError, ValueError):
            raise WorkerLost(self._how_it_ended()) from None
        if "crashed" in message:
            raise WorkerLost(message["crashed"])
        return message

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "ended its connection"
        if status >= 0:
            return f"ended its process with status {status}"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = str(-status)
        more = "; out of memory?" if name == "SIGKILL" else ""
        return f"ended its process ({name}{more})"


def main() -> None:
    """Answer requests until the parent is gone."""
    _end_with_parent()
    connection = Connection(int(sys.argv[1]))
    try:
        answer = _open(connection, **pickle.loads(connection.recv_bytes()))
        while answer:
            request = pickle.loads(connection.recv_bytes())
            _say(connection, outcomes=answer(request))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001
        # Whatever it is, a library's state may be spoilt (after a CUDA error it is): go, and come back fresh.
        _say(connection, crashed=f"raises {type(error).__name__}: {error}"[:300])
        sys.exit(1)


def _open(connection: Connection, *, model: "CheckpointModel", identify: bool) -> "ModelAnswers | None":
    """Load the model, say so, and return what answers requests; None where it was refused."""
    from eval.backends.checkpoint_model import describe
    from eval.backends.model_answers import ModelAnswers, fitting_rows

    try:
        opened = model.open()
        identity = model.identity() if identify else {}
    except VLMError as error:
        _say(connection, refused={"code": error.code, "message": error.message})
        return None
    _say(connection, model={**identity, **describe(opened)}, rows=fitting_rows(opened))
    return ModelAnswers(opened)


def _say(connection: Connection, **message) -> None:
    connection.send_bytes(json.dumps(message).encode("ascii"))


def _end_with_parent() -> None:
    """Leave when the parent is gone, even in the middle of a batch: it may have been killed, and a new one started."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
