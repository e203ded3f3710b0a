"""`vlm chat`: a conversation in the terminal."""

import contextlib
import sys

import click

from vlm.commands.options import (
    draft_option,
    generation_config,
    generation_options,
    json_option,
    kv_cache_dtype_option,
    low_memory_option,
    model_options,
    open_model,
)
from vlm.commands.pictures import STANDARD_INPUT, image_turn, read_picture
from vlm.commands.progress import layers_run
from vlm.commands.replies import reply_record
from vlm.commands.terminal import Command, complain, say, say_json
from vlm.errors import VLMError


@click.command(cls=Command, short_help="Talk about images in the terminal.")
@click.argument("images", metavar="[IMAGE ...]", nargs=-1)
@model_options
@kv_cache_dtype_option
@low_memory_option
@draft_option
@generation_options
@json_option
def chat(images: tuple[str, ...], as_json: bool, **options):
    """Talk in the terminal. The images belong to what you say first; replies appear as they are written.

    \b
    vlm chat
    vlm chat chart.png
    vlm chat plan.png photo.png --temperature 0.7 --seed 1
    printf 'What is shown?\\nAnd which colour?\\n' | vlm chat chart.png

    /reset begins again with the same images, /quit or Ctrl-D leaves, Ctrl-C stops a reply. In a pipe each line is one
    turn. With --json replies are not streamed; the last line holds all of them.
    """
    if STANDARD_INPUT in images:
        raise click.UsageError("- is no image here: vlm chat reads what you say from standard input; give a path")
    config = generation_config(options)
    pictures = [read_picture(name) for name in images]
    model = open_model(options)
    # Encoded once, and refused now rather than after the first line was typed.
    with layers_run(model.model):
        pictures = [model.encode_image(picture) for picture in pictures]
    conversation = _Conversation(model, config, list(images), pictures, streamed=not as_json)
    conversation.run()
    if as_json:
        say_json({"replies": conversation.records})


class _Conversation:
    """Turns taken one after the other."""

    def __init__(self, model, config, names: list[str], pictures: list, *, streamed: bool):
        self.model, self.config, self.names, self.pictures, self.streamed = model, config, names, pictures, streamed
        self.is_terminal = sys.stdin.isatty()
        self.messages: list[dict] = []
        self.records: list[dict] = []

    def run(self) -> None:
        """Take turns until the user leaves."""
        if self.is_terminal:
            say("/reset begins again, /quit or Ctrl-D leaves, Ctrl-C stops a reply.")
        while (line := self._line()) is not None:
            text = line.strip()
            if text == "/quit":
                return
            if text == "/reset":
                self.messages = []
            elif text.startswith("/") and len(text.split()) == 1 and self.is_terminal:
                say(f"there is no command {text}; /reset begins again, /quit leaves")
            elif text:
                self._turn(text)

    def _line(self) -> str | None:
        """Return what the user says next; None when there is no more."""
        if not self.is_terminal:
            return sys.stdin.readline() or None
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` arrow keys and a history, where it exists
        try:
            return input("> ")
        except EOFError:
            say("")
            return None

    def _turn(self, text: str) -> None:
        """Answer `text`; in a terminal an error ends the turn, in a pipe everything."""
        turn = image_turn(self.pictures, text) if not self.messages else {"role": "user", "content": text}
        try:
            answer = self._streamed([*self.messages, turn]) if self.streamed else self._whole([*self.messages, turn])
        except VLMError as error:
            if not self.is_terminal:
                raise
            complain(error)
            return
        self.messages += [turn, {"role": "assistant", "content": answer}]

    def _streamed(self, messages: list[dict]) -> str:
        """Write the reply while it grows; an interrupted one stays in the conversation as far as it came."""
        said: list[str] = []
        pieces = self.model.stream(messages, config=self.config)
        try:
            for piece in pieces:
                said.append(piece)
                say(piece, end="")
        except KeyboardInterrupt:
            if not self.is_terminal:
                raise
            say(" (stopped)", end="")
        finally:
            pieces.close()
            say("")
        return "".join(said)

    def _whole(self, messages: list[dict]) -> str:
        reply = self.model.chat(messages, config=self.config)
        say(reply.text)
        self.records.append(reply_record([] if self.messages else self.names, reply))
        return reply.text
