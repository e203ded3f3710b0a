"""The command line, `vlm` or `python -m vlm`: its commands, and what exit status stands for what end.

The commands are in `vlm/commands/`. Nothing heavy is imported before one of them runs, so that help comes at once.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

import click

from vlm.commands.bench import bench
from vlm.commands.chat import chat
from vlm.commands.convert import convert
from vlm.commands.info import info
from vlm.commands.options import AS_JSON
from vlm.commands.replies import ask, caption
from vlm.commands.serve import serve
from vlm.commands.terminal import say_json
from vlm.commands.tokenizer import tokenizer
from vlm.commands.train import train
from vlm.commands.verify import verify

FAILED, INTERRUPTED = 1, 130
_UNWRITABLE = {errno.EPIPE, errno.EIO, errno.ENOSPC}
"""What writing ends with where the reader has left, the terminal was closed, or the disk is full."""


_WHEN_INTERRUPTED = {"error": {"code": "interrupted", "message": "interrupted before it was done; run it again"}}
"""What --json ends with then."""


class _Terminated(BaseException):
    """SIGTERM came. It is no KeyboardInterrupt, for one of those only ends a reply of `vlm chat`."""


class ExitStatusGroup(click.Group):
    """Leaves with 0 when done, 1 when failed, 2 after wrong usage and 130 when interrupted (SIGINT, SIGTERM).

    After an interrupt, too, the output with --json ends in one JSON object.
    """

    def main(self, *args, **kwargs) -> NoReturn:
        # What is no text in the terminal's encoding is read as U+FFFD, and written as \u2026.
        for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors=errors)
        status = FAILED
        try:
            with _noticing_sigterm():
                status = self._status(*args, **kwargs)
                sys.stdout.flush()
        except OSError as error:
            if error.errno not in _UNWRITABLE or error.filename is not None:
                raise
            status = status or FAILED
            if error.errno != errno.EPIPE:
                text = f"error: the output cannot be written ({error.strerror}); free some space or write elsewhere"
                _tell(sys.stderr, lambda: click.echo(text, err=True))
            _abandon(sys.stdout)
        sys.exit(status)

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, _Terminated):
            if ctx.meta.get(AS_JSON):
                _tell(sys.stdout, lambda: say_json(_WHEN_INTERRUPTED))
            # Click would first write a line, which a closed terminal does not take.
            raise click.Abort from None

    def _status(self, *args, **kwargs) -> int:
        try:
            status = super().main(*args, **kwargs | {"standalone_mode": False})
        except click.ClickException as error:
            _tell(sys.stderr, error.show)
            return error.exit_code
        except (click.Abort, KeyboardInterrupt, _Terminated):
            _tell(sys.stderr, lambda: click.echo("\ninterrupted", err=True))
            return INTERRUPTED
        return status if isinstance(status, int) else 0


@contextmanager
def _noticing_sigterm() -> Iterator[None]:
    """Raise `_Terminated` at SIGTERM, once; where that is handled or ignored already, all stays as it is."""
    is_main = threading.current_thread() is threading.main_thread()
    is_free = is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_free:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if is_free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise _Terminated


def _tell(stream: TextIO, write: Callable[[], None]) -> None:
    """Call what writes to `stream`, where that can still be written to."""
    try:
        write()
    except OSError:
        _abandon(stream)


def _abandon(stream: TextIO) -> None:
    """Let what `stream` still holds go nowhere: the interpreter would fail when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@click.group(cls=ExitStatusGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sightline-vlm", prog_name="vlm")
def main():
    """Ask a vision-language model about pictures.

    \b
    vlm ask chart.png "Which year is highest?"      one answer
    vlm caption *.png --json                        a caption each, for a program
    vlm chat chart.png                              talk about it
    vlm serve                                       answer over HTTP, as OpenAI's and Ollama's servers do
    vlm train run.toml                              fine-tune it, whole or by an adapter
    vlm tokenizer book.txt --out tokenizer          a tokenizer of your own
    vlm info 11b-vision                             does it fit this machine?
    vlm bench --quick                               how near is it to what the machine allows?
    vlm verify ./Llama-3.2-11B-Vision-Instruct      is it the model it should be?

    Without --model, the model that ships with Sightline answers: offline, on the CPU.

    Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """


for command in (ask, caption, chat, info, convert, verify, serve, train, tokenizer, bench):
    main.add_command(command)
