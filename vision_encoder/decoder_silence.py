"""Keeps Pillow and its libraries from writing to standard error while they decode: what they say is the file's say."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced(format_name: str | None) -> Iterator[None]:
    """Silence the decoder of `format_name`, Pillow's warnings in any case."""
    with _pillow_warnings, _libtiff() if format_name == "TIFF" else contextlib.nullcontext():
        yield


class _PillowWarnings:
    """Ignores Pillow's warnings while any thread is inside; `warnings.catch_warnings` alone is not thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self._num_inside = 0
        self._filters = None

    def __enter__(self) -> None:
        with self._lock:
            self._num_inside += 1
            if self._num_inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *exception) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._filters.__exit__(*exception)


# One for the process, as the filters it sets are.
_pillow_warnings = _PillowWarnings()


@contextlib.contextmanager
def _libtiff() -> Iterator[None]:
    """Point file descriptor 2, to which libtiff writes by itself, nowhere while the process has no other thread.

    With other threads it is left alone, for their messages would be lost; a server decodes in a `DecodeWorker`, which
    has no standard error.
    """
    try:
        kept = os.dup(2) if threading.active_count() == 1 else None
    except OSError:  # closed, as in a daemon
        kept = None
    if kept is None:
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
