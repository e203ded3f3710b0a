"""What commands write: text that cannot steer a terminal, one JSON line for programs, and failures."""

import json
import re
import sys
from typing import TextIO

import click

from vlm.errors import UnknownName, VLMError

# C0 without tab and newline, delete, and C1: a model that writes ESC could move the cursor, set the title or worse.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str, stream: TextIO) -> str:
    """Return `text` as it may be written to `stream`: for a terminal its control characters are spelled out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text) if stream.isatty() else text


def say(text: str, *, end: str = "\n") -> None:
    """Write `text` to standard output at once. Unlike `click.echo` this takes nothing away in a pipe."""
    sys.stdout.write(printable(text, sys.stdout) + end)
    sys.stdout.flush()


def say_json(value: dict) -> None:
    """Write `value` as one line, in ASCII."""
    say(json.dumps(value))


def complain(error: VLMError, *, about: str = "") -> None:
    """Write an error and its code to standard error, of a bad checkpoint every tensor that the error lists."""
    found = error.report if error.code == "checkpoint_invalid" else error.message
    text = f"error: {about}{': ' if about else ''}{found} [{error.code}]"
    sys.stderr.write(printable(text, sys.stderr) + "\n")


class Command(click.Command):
    """A command whose errors end it with status 1, or 2 for a name that is not offered.

    With --json standard output then ends in the error.
    """

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except VLMError as error:
            failure = error
        except (MemoryError, RuntimeError) as error:
            # torch.OutOfMemoryError, without importing torch for it.
            if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
                raise
            failure = VLMError("device_unavailable", "the memory ran out; give a smaller model, image or --dtype")
        complain(failure)
        if ctx.params.get("as_json"):
            say_json({"error": {"code": failure.code, "message": failure.message}})
        ctx.exit(2 if isinstance(failure, UnknownName) else 1)
