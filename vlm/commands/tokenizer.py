"""`vlm tokenizer`: a tokenizer made from one's own texts."""

from pathlib import Path

import click

from vlm.commands.options import json_option
from vlm.commands.terminal import Command, say, say_json


@click.command(cls=Command, short_help="Make a tokenizer from texts.")
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder to write.")
@click.option(
    "--size", type=click.IntRange(256), default=1024, show_default=True, help="Tokens, the 256 bytes among them."
)
@click.option("--characters", is_flag=True, help="An id a character, in place of learned parts of words.")
@json_option
def tokenizer(texts: tuple[str, ...], out: Path, size: int, characters: bool, as_json: bool):
    """Learn a tokenizer from TEXT, files of plain text or of training data, and write it into the folder OUT.

    \b
    vlm tokenizer book.txt --out tokenizer
    vlm tokenizer corpus/*.parquet talk.jsonl --out tokenizer --size 8192
    vlm tokenizer book.txt --out letters --characters

    Byte-pair encoding, written as tiktoken's tokenizer.model and as tokenizer.json; Meta's special tokens follow the
    learned ones. A model from nothing takes it as model.tokenizer (see `vlm train`).
    """
    from vlm.training.tokenizer_training import character_tokenizer, read_texts, train_bpe

    def read():
        return (text for path in texts for text in read_texts(path))

    made = character_tokenizer(read()) if characters else train_bpe(read(), size)
    written = made.save(out)
    num_chars, num_ids = 0, 0
    for text in read():
        num_chars, num_ids = num_chars + len(text), num_ids + made.count(text)
    say(f"wrote {out}: {len(made.ranks)} tokens and {len(made.special_ids)} special ones")
    say(f"{num_chars:,} characters become {num_ids:,} tokens, {num_chars / max(num_ids, 1):.2f} characters each")
    if as_json:
        names = [path.name for path in written]
        say_json({"out": str(out), "files": names, "tokens": len(made.ranks), "chars": num_chars, "ids": num_ids})
