"""Images as they are named on a command line: a path, a `data:` URL, or `-` for standard input."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from vlm.images.gate import named_picture

if TYPE_CHECKING:
    from PIL.Image import Image

STANDARD_INPUT = "-"


def check_standard_input(names: Sequence[str]) -> None:
    """Refuse a second `-`, and one where nobody piped anything."""
    if names.count(STANDARD_INPUT) > 1:
        raise click.UsageError("- stands for standard input and can be given once; save the other images to files")
    if STANDARD_INPUT in names and click.get_binary_stream("stdin").isatty():
        raise click.UsageError("- reads an image from standard input, which is a terminal; pipe one: vlm ask - < a.png")


def read_picture(name: str) -> "Image":
    """Return the picture named; an error says which one it was."""
    if name == STANDARD_INPUT:
        from vision_encoder.image_input import DEFAULT_LIMITS

        # One byte more than is let in, so that too much is noticed and never held.
        return named_picture(click.get_binary_stream("stdin").read(DEFAULT_LIMITS.max_bytes + 1), "standard input")
    return named_picture(name, name if len(name) <= 60 else f"{name[:60]}…")


def image_turn(pictures: Sequence[object], text: str) -> dict:
    """Return what a user says: the pictures, then the text."""
    images = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}
