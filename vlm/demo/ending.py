"""How the demo's process ends when it is asked to."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Run the block until it ends or SIGTERM or Ctrl-C ends it, then end this process with status 0.

    Python's own way out is not taken: a thread that is in the midst of a model's step cannot be ended, and makes the
    process abort (SIGABRT) when it comes back to a Python that is gone. Nothing after the block runs.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        yield
    sys.stdout.flush()
    os._exit(0)
