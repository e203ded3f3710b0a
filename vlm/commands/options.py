"""The options that commands share, and what they become: a model and the settings of a generation."""

import gc
import importlib
import math
import sys
from typing import TYPE_CHECKING

import click

from vlm.errors import VLMError

if TYPE_CHECKING:
    from vlm.generation.sampling import GenerationConfig
    from vlm.pipeline import VLM

AS_JSON = "sightline.as_json"
"""Where a context's `meta` says that the command was given --json."""


class FiniteRange(click.FloatRange):
    """A number of a range: neither "nan", which every range takes, nor "inf"."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{param.name} is {number}; expected a finite number", param, ctx)
        return number


_REFERENCE = click.Choice(["meta", "transformers"])
_DTYPE = click.Choice(["auto", "float32", "bfloat16", "float16"])

model_option = click.option(
    "--model", metavar="FOLDER|NAME", help="A checkpoint's folder, or a Hugging Face Hub name. [default: the shipped]"
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
dtype_option = click.option(
    "--dtype",
    type=_DTYPE,
    default="auto",
    show_default=True,
    help="dtype of the weights; auto is the checkpoint's own.",
)
quantize_option = click.option(
    "--quantize",
    type=click.Choice(["int8", "int4"]),
    help="Keep the decoder's matrices in 8 or 4 bits. [default: as the checkpoint has them]",
)
kv_cache_dtype_option = click.option(
    "--kv-cache-dtype",
    type=click.Choice(["auto", "int8"]),
    default="auto",
    show_default=True,
    help="dtype of the text's keys and values; int8 halves their memory, auto is the model's own.",
)
low_memory_option = click.option(
    "--low-memory/--in-memory",
    default=None,
    help="On a CPU: leave vision tower and embedding in their safetensors files, and read layer by layer what a "
    "picture needs. On a GPU: keep the tower, and layers that do not fit, in CPU memory. [default: where memory is "
    "short]",
)
draft_option = click.option(
    "--draft",
    metavar="FOLDER|NAME",
    help="A small text model of the same vocabulary that proposes tokens (Llama-3.2-1B-Instruct for the 11B): faster "
    "long replies, each token still the model's own likeliest. For one reply at a time and --temperature 0.",
)
adapter_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="FOLDER",
    help="A low-rank adapter (PEFT's layout) on top of the model; may be given again, they add up.",
)
reference_option = click.option(
    "--reference",
    type=_REFERENCE,
    default="meta",
    show_default=True,
    help="Whose forward pass: Meta's, or stock transformers' since about 4.56 (for fine-tunes trained there).",
)
views_option = click.option(
    "--views",
    "num_views",
    type=click.IntRange(1, 8),  # MAX_VIEWS, whose module imports torch
    help="Look at each picture in up to so many views, whose mean decides: surer, and so many times slower. [default: "
    "the model's own, 7 of the shipped, else 1]",
)
thin_option = click.option(
    "--thin/--all-patches",
    default=None,
    help="Let one blank patch of a picture stand for many: several times faster on charts and pages, nearly the same. "
    "[default: the model's own, --thin of the shipped]",
)


def _remember(ctx: click.Context, param: click.Parameter, as_json: bool) -> bool:
    ctx.meta[AS_JSON] = as_json
    return as_json


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_remember, help="Make the last line of the output one JSON object."
)


def model_options(command):
    """Add the options that say which model answers, and where."""
    options = (model_option, adapter_option, device_option, dtype_option, quantize_option, reference_option)
    options += (views_option, thin_option)
    for option in reversed(options):
        command = option(command)
    return command


def generation_options(command):
    """Add the options that say how a reply is generated."""
    options = (
        click.option(
            "--max-new-tokens",
            type=click.IntRange(1),
            help="Most tokens of a reply. [default: 512, or what the context leaves]",
        ),
        click.option(
            "--temperature",
            type=FiniteRange(0),
            default=0.0,
            show_default=True,
            help="0 takes the likeliest token each time; above, tokens are drawn.",
        ),
        click.option(
            "--top-p",
            type=FiniteRange(0, 1),
            default=1.0,
            show_default=True,
            help="Draw from the likeliest tokens that together have this probability.",
        ),
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Makes drawing repeat itself."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the reply before TEXT; may be given again."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_model(options: dict) -> "VLM":
    """Return the model that `options`, a command's own, name; a bar shows how far it is read."""
    import_torch()
    from vlm.commands.progress import weights_read
    from vlm.pipeline import VLM

    names = ("device", "dtype", "quantize", "kv_cache_dtype", "low_memory", "reference", "draft", "adapters")
    names += ("num_views", "thin")
    with weights_read() as progress:
        return VLM.from_pretrained(options["model"], progress=progress, **{name: options[name] for name in names})


def generation_config(options: dict) -> "GenerationConfig":
    """Return the settings that `options` name; what they cannot be is wrong usage."""
    import_torch()
    from vlm.generation.sampling import GenerationConfig

    names = ("max_new_tokens", "temperature", "top_p", "seed", "stop")
    try:
        return GenerationConfig(**{name: options[name] for name in names})
    except VLMError as error:
        raise click.UsageError(error.message) from None


def import_torch() -> None:
    """Import torch, and search what it makes for no garbage: not meanwhile, not later and not when the process ends.

    It keeps a quarter of a million objects. To go through them again and again takes a fifth of a short command's time.
    """
    if "torch" not in sys.modules:
        gc.disable()
        try:
            importlib.import_module("torch")
        finally:
            gc.freeze()
            gc.enable()
