"""`vlm ask` and `vlm caption`: pictures in, replies out."""

import itertools
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

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
from vlm.commands.pictures import check_standard_input, image_turn, read_picture
from vlm.commands.progress import layers_run
from vlm.commands.terminal import Command, complain, say, say_json
from vlm.errors import VLMError

if TYPE_CHECKING:
    from vlm.generation.reply import Reply
    from vlm.generation.sampling import GenerationConfig
    from vlm.pipeline import VLM

_ASK_EXAMPLE = 'vlm ask chart.png "Which year is highest?"'


@click.command(cls=Command, short_help="Answer a question about images.")
@click.argument("images_and_question", metavar="IMAGE [IMAGE ...] QUESTION", nargs=-1)
@model_options
@kv_cache_dtype_option
@low_memory_option
@draft_option
@generation_options
@json_option
def ask(images_and_question: tuple[str, ...], as_json: bool, **options):
    """Answer a question about the images, which all stand in one prompt, in this order.

    \b
    vlm ask chart.png "Which year is highest?"
    vlm ask before.jpg after.jpg "What changed?" --max-new-tokens 100
    curl -s https://example.com/chart.png | vlm ask - "What is the title?"
    vlm ask chart.png "Total?" --model ./Llama-3.2-11B-Vision-Instruct --json | tail -n 1

    An IMAGE is a path, a data: URL, or - for standard input.

    \b
    With --json the last line is
    {"replies": [{"images", "text", "finish_reason", "confidence", "timings"}]}
    """
    names, question = _split_question(images_and_question)
    check_standard_input(names)
    pictures = [read_picture(name) for name in names]
    config = generation_config(options)
    model = open_model(options)
    reply = said(model, [image_turn(pictures, question)], config)
    if as_json:
        say_json({"replies": [reply_record(names, reply)]})


@click.command(cls=Command, short_help="Describe images, one caption each.")
@click.argument("images", metavar="IMAGE [IMAGE ...]", nargs=-1, required=True)
@model_options
@kv_cache_dtype_option
@low_memory_option
@draft_option
@generation_options
@json_option
@click.pass_context
def caption(ctx: click.Context, images: tuple[str, ...], as_json: bool, **options):
    """Describe images, one caption each.

    \b
    vlm caption photo.jpg
    vlm caption *.png --max-new-tokens 60
    vlm caption *.png --json | tail -n 1

    An image that cannot be read is named on standard error and leaves the others alone; the exit status is then 1, and
    with --json its entry holds "error" with "code" and "message".
    """
    check_standard_input(images)
    config = generation_config(options)
    model = open_model(options)
    records, failed = [], False
    for name, reply in _captions(model, images, config):
        if isinstance(reply, VLMError):
            failed = True
            complain(reply)
            records.append(_failed_record(name, reply))
        else:
            say(f"{name}: {reply.text}" if len(images) > 1 else reply.text)
            records.append(reply_record([name], reply))
    if as_json:
        say_json({"replies": records})
    if failed:
        ctx.exit(1)


def said(model: "VLM", messages: list[dict], config: "GenerationConfig") -> "Reply":
    """Return the reply to `messages`, which is written to standard output as it grows."""
    with layers_run(model.model):
        pieces = model.stream(messages, config=config)
        first = next(pieces, "")
    try:
        for piece in itertools.chain([first], pieces):
            say(piece, end="")
    finally:
        # Whatever ends it: a line of its own for what comes after.
        pieces.close()
        say("")
    return pieces.reply


def reply_record(names: list[str], reply: "Reply") -> dict:
    """Return a reply as --json shows it."""
    return {
        "images": list(names),
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "confidence": reply.confidence,
        "timings": asdict(reply.timings),
    }


def _failed_record(name: str, error: VLMError) -> dict:
    empty = dict.fromkeys(("text", "finish_reason", "confidence", "timings"))
    return {"images": [name], **empty, "error": {"code": error.code, "message": error.message}}


def _split_question(given: tuple[str, ...]) -> tuple[list[str], str]:
    """Return the images and the question, which comes last."""
    if len(given) < 2:
        raise click.UsageError(f"give one image or more, then the question in quotes: {_ASK_EXAMPLE}")
    *names, question = given
    if question == "-" or os.path.isfile(question):
        raise click.UsageError(
            f"the last argument, {question!r:.80}, is a file; the question comes last, in quotes: {_ASK_EXAMPLE}"
        )
    if not question.strip():
        raise click.UsageError(f"the question is empty; give it last, in quotes: {_ASK_EXAMPLE}")
    return names, question


def _captions(model, names: tuple[str, ...], config):
    """Yield (name, caption or error) in order, a batch at a time, under a progress bar on a terminal."""
    from tqdm import tqdm

    from vlm.batch import MAX_BATCH_SIZE
    from vlm.pipeline import CAPTION_REQUEST

    with tqdm(total=len(names), unit="image", disable=None if len(names) > 1 else True, leave=False) as bar:
        for start in range(0, len(names), MAX_BATCH_SIZE):
            batch = names[start : start + MAX_BATCH_SIZE]
            read = [_picture_or_error(name) for name in batch]
            turns = [[image_turn([one], CAPTION_REQUEST)] for one in read if not isinstance(one, VLMError)]
            replies = iter(model.chat_many(turns, config=config, return_errors=True))
            bar.clear()
            for name, one in zip(batch, read, strict=True):
                yield name, one if isinstance(one, VLMError) else next(replies)
            bar.update(len(batch))


def _picture_or_error(name: str):
    try:
        return read_picture(name)
    except VLMError as error:
        return error
