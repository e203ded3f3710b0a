"""Samples read ahead by other processes, which are started again where one of them dies."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader, Dataset, Subset

from vlm.training.data.batches import StepData

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""At one and the same step."""
DIED = "DataLoader worker (pid"
"""How torch's errors begin for a process that died; those of one that met with an error begin with "Caught"."""


class Ahead:
    """The samples of `steps` one after the other, read by so many `workers`; without any, when they are asked for."""

    def __init__(self, data: Dataset, steps: range, workers: int):
        self._data, self._steps, self._workers = data, steps, workers
        self._batches: Iterator[StepData] | None = None
        self._is_waiting = False
        self._notice: Callable | None = None
        """Raises if a process has died: torch's handler of SIGCHLD."""
        self.failure: str | None = None
        """Why nothing more can be read."""

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_) -> None:
        self._batches = None
        if self._notice is not None:
            signal.signal(signal.SIGCHLD, self._notice)

    def read(self) -> StepData | None:
        """Return the samples of the next step; None, with a `failure`, where reading them ends the processes each time.

        Samples are a function of the step alone, so that those which are started anew read what the others would have.
        """
        for restarts in range(1 + MAX_RESTARTS):
            try:
                try:
                    self._is_waiting = True
                    data = self._next(alone=restarts > 0)
                finally:
                    self._is_waiting = False
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not self._is_death(error):
                    raise
                self.failure = f"{error!s:.100}".split("\n")[0].strip() or type(error).__name__
                if restarts < MAX_RESTARTS:
                    logger.warning("%s; those that read ahead are started again", self.failure)
            else:
                self._steps, self.failure = self._steps[1:], None
                self._batches = None if restarts else self._batches
                return data
            self._batches = None
        return None

    def _next(self, *, alone: bool) -> StepData:
        """Return the next samples; alone: of one process that reads no step after them, which may be its death."""
        if self._batches is None:
            self._batches = iter(
                DataLoader(
                    Subset(self._data, self._steps),
                    batch_size=None,
                    collate_fn=_same,
                    num_workers=1 if alone else self._workers,
                    prefetch_factor=1 if alone else None,
                )
            )
            if self._workers and self._notice is None:
                self._hold_back()
        elif self._notice is not None:
            self._notice(signal.SIGCHLD, None)
        return next(self._batches)

    def _hold_back(self) -> None:
        """Have a death noticed while a step is waited for: torch's handler raises anywhere, also within an update."""
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._notice = handler
            signal.signal(signal.SIGCHLD, lambda *args: handler(*args) if self._is_waiting else None)

    def _is_death(self, error: Exception) -> bool:
        """Tell whether a process died, or was gone when what it had read was to be fetched from it."""
        if isinstance(error, RuntimeError):
            return str(error).startswith(DIED)
        return self._workers > 0 and not str(error).startswith("Caught")


def _same(data: StepData) -> StepData:
    return data
