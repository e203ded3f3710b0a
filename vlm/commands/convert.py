"""`vlm convert`: a checkpoint in another layout, dtype or precision."""

import os
from pathlib import Path
from typing import Literal

import click

from vlm.commands.options import dtype_option, json_option, quantize_option
from vlm.commands.terminal import Command, say, say_json
from vlm.errors import VLMError

_LAYOUTS = {"hf": "Hugging Face", "meta": "Meta"}


def _folder(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    if not value:
        raise click.BadParameter("it is empty; give the path of a folder")
    return Path(value)


@click.command(cls=Command, short_help="Change the layout of a checkpoint, or quantise it.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(file_okay=False), callback=_folder)
@click.option(
    "--format", type=click.Choice(["hf", "meta"]), help="Hugging Face's layout, or Meta's. [with --quantize: hf]"
)
@dtype_option
@quantize_option
@click.option(
    "--group-size",
    type=click.Choice(["128", "64", "32"]),
    default="128",
    show_default=True,
    help="Weights that share a scale in int4. Fewer are more exact and larger.",
)
@click.option("--overwrite", is_flag=True, help="Write into DST although it holds files; others of its files stay.")
@json_option
def convert(
    source: str,
    target: Path,
    format: Literal["hf", "meta"] | None,
    dtype: str,
    quantize: str | None,
    group_size: str,
    overwrite: bool,
    as_json: bool,
):
    """Write the checkpoint SRC, a folder or a Hugging Face Hub name, into the folder DST in another layout.

    \b
    vlm convert ./Llama-3.2-11B-Vision-Instruct ./meta-11b --format meta
    vlm convert meta-llama/Llama-3.2-11B-Vision-Instruct ./11b-float16 --format hf --dtype float16
    vlm convert ./Llama-3.2-11B-Vision-Instruct ./11b-int4 --quantize int4

    The weights, their settings, the tokenizer and a SHA256SUMS of all files are written: all of them, or nothing.
    To Hugging Face's layout a tokenizer_config.json and a chat template of SRC come along as they are.
    To Hugging Face's layout one tensor is in memory at a time. Quantised weights are stored as compressed-tensors does
    (pack-quantized), which transformers and vLLM read too.
    """
    format = _check(source, target, format, quantize, overwrite)
    dtype_name, num_parameters, stored = _convert(source, target, format, dtype, quantize, int(group_size))
    names = sorted(path.name for path in target.iterdir())
    precision = dtype_name if stored is None else f"{stored} and {dtype_name}"
    say(f"wrote {target}: {num_parameters:,} parameters as {precision} in {_LAYOUTS[format]}'s layout")
    say("\n".join(f"  {name}" for name in names))
    if as_json:
        say_json(
            {
                "source": source,
                "target": str(target),
                "format": format,
                "dtype": dtype_name,
                "quantize": quantize,
                "stored": stored,
                "num_parameters": num_parameters,
                "files": names,
            }
        )


def _check(source: str, target: Path, format: str | None, quantize: str | None, overwrite: bool) -> str:
    """Return the format. Refuses a target that is the source, or that holds files nobody offered."""
    if format is None and quantize is None:
        raise click.UsageError("Missing option '--format'. Choose from: hf, meta; or give --quantize")
    if format == "meta" and quantize is not None:
        raise click.UsageError("--quantize goes with --format hf; Meta's layout has no form for quantised weights")
    try:
        is_source = target.exists() and os.path.exists(source) and target.samefile(source)
        is_full = target.is_dir() and any(target.iterdir())
    except OSError as error:
        raise VLMError(
            "invalid_request", f"DST, {target.name!r:.80}, cannot be looked at ({error.strerror}); give another folder"
        ) from None
    if is_source:
        raise click.UsageError("SRC and DST are the same folder; give another DST")
    if is_full and not overwrite:
        raise click.UsageError(f"DST, {target.name!r:.80}, is not empty; give a new folder, or --overwrite")
    return format or "hf"


def _convert(
    source: str, target: Path, format: str, dtype: str, quantize: str | None, group_size: int
) -> tuple[str, int, str | None]:
    """Convert and return the name of the dtype, the number of parameters, and how quantised weights are stored."""
    from tqdm import tqdm

    from vlm import checkpoint
    from vlm.loading import choose_dtype, read_tokenizer
    from vlm.model_sizes import ModelSizes
    from vlm.quantization import quantized_config

    folder, chosen = checkpoint.resolve(source), choose_dtype(dtype) or "auto"
    config = checkpoint.read_config(folder)
    num_parameters = ModelSizes.of(quantized_config(config) if quantize else config).num_parameters
    # A tokenizer that the layout cannot hold is refused before any weight is written.
    tokenizer = read_tokenizer(folder, config)
    files = tokenizer.files(format)
    with tqdm(total=num_parameters, unit_scale=True, desc="reading", disable=None, leave=False) as bar:

        def write_more(staging: Path) -> None:
            if format == "hf":
                checkpoint.copy_use_files(folder, staging)
            for name, content in files.items():
                (staging / name).write_bytes(content)
            bar.set_description("adding checksums")
            checkpoint.write_checksums(staging)

        if format == "hf":
            used = checkpoint.convert_to_hf(
                folder,
                target,
                dtype=chosen,
                quantize=quantize,
                group_size=group_size,
                write_more=write_more,
                progress=bar.update,
                tokenizer=tokenizer,
            )
        else:
            model = checkpoint.load_model(folder, dtype=chosen)
            bar.update(num_parameters)
            used = model.decoder.embedding.weight.dtype
            checkpoint.save_model(model, target, format=format, write_more=write_more)
    stored = checkpoint.stored_precision(target) if format == "hf" else None
    return str(used).removeprefix("torch."), num_parameters, stored
