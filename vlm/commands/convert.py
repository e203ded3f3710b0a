"""`vlm convert`: a checkpoint in the other layout."""

from pathlib import Path
from typing import Literal

import click

from vlm.commands.options import dtype_option, json_option
from vlm.commands.terminal import Command, say, say_json


@click.command(cls=Command, short_help="Change the layout of a checkpoint.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(file_okay=False, path_type=Path))
@click.option("--format", type=click.Choice(["hf", "meta"]), required=True, help="Hugging Face's layout, or Meta's.")
@dtype_option
@click.option("--overwrite", is_flag=True, help="Write into DST although it holds files; others of its files stay.")
@json_option
def convert(source: str, target: Path, format: Literal["hf", "meta"], dtype: str, overwrite: bool, as_json: bool):
    """Write the checkpoint SRC, a folder or a Hugging Face Hub name, into the folder DST in another layout.

    \b
    vlm convert ./Llama-3.2-11B-Vision-Instruct ./meta-11b --format meta
    vlm convert meta-llama/Llama-3.2-11B-Vision-Instruct ./11b-float16 --format hf --dtype float16

    The weights, their settings, the tokenizer and a SHA256SUMS of all files are written: all of them, or nothing.
    """
    _check_target(source, target, overwrite)
    from tqdm import tqdm

    from vlm import VLM
    from vlm.checkpoint import save_model, write_checksums

    def write_more(staging: Path) -> None:
        for name, content in files.items():
            (staging / name).write_bytes(content)
        bar.set_description("adding checksums")
        bar.update()
        write_checksums(staging)
        bar.update()

    with tqdm(total=3, desc="reading", disable=None, leave=False, bar_format="{desc} {bar} {elapsed}") as bar:
        vlm = VLM.from_pretrained(source, device="cpu", dtype=dtype)
        # A tokenizer that the layout cannot hold is refused before any weight is written.
        files = vlm.tokenizer.files(format)
        bar.set_description("writing")
        bar.update()
        save_model(vlm.model, target, format=format, write_more=write_more)
    found, names = vlm.info, sorted(path.name for path in target.iterdir())
    dtype_name = str(found.dtype).removeprefix("torch.")
    layout = {"hf": "Hugging Face", "meta": "Meta"}[format]
    say(f"wrote {target}: {found.num_parameters:,} parameters as {dtype_name} in {layout}'s layout")
    say("\n".join(f"  {name}" for name in names))
    if as_json:
        say_json(
            {
                "source": source,
                "target": str(target),
                "format": format,
                "dtype": dtype_name,
                "num_parameters": found.num_parameters,
                "files": names,
            }
        )


def _check_target(source: str, target: Path, overwrite: bool) -> None:
    """Refuse a target that is the source, or that holds files nobody offered."""
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise click.UsageError("SRC and DST are the same folder; give another DST")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise click.UsageError(f"DST, {target.name!r:.80}, is not empty; give a new folder, or --overwrite")
