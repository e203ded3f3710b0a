"""A Python process of ours, and the socket over which it is spoken to: what holds a model that may hang or die."""

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

_ROOT = str(Path(__file__).parent.parent)


def start_child(module: str) -> tuple[subprocess.Popen, Connection]:
    """Start `python -m module N`, where N is the number of its end of a socket, and return it with our end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a library prints must not get into the output of the command
            env=_environment(),
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        return process, Connection(ours.detach())


def _environment() -> dict[str, str]:
    """Return the environment in which the process finds what this one does."""
    # Threads that wait by spinning slow down everything on a machine that has other work too.
    waiting = {"OMP_WAIT_POLICY": "passive"}
    return {**waiting, **os.environ, "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)])}
