"""`vlm verify`: whether a checkpoint is whole, and computes what the references compute."""

import click

from vlm.commands.options import device_option, dtype_option, json_option, reference_option
from vlm.commands.terminal import Command, say, say_json


@click.command(cls=Command, short_help="Compare a checkpoint with the reference implementations.")
@click.argument("model", metavar="MODEL")
@device_option
@dtype_option
@reference_option
@json_option
@click.pass_context
def verify(ctx: click.Context, model: str, device: str, dtype: str, reference: str, as_json: bool):
    """Check that the checkpoint MODEL, a folder or a Hugging Face Hub name, is whole and computes what it should.

    \b
    vlm verify ./Llama-3.2-11B-Vision-Instruct
    vlm verify ./Llama-3.2-11B-Vision-Instruct --dtype float32 --device cpu
    vlm verify ./my-fine-tune --reference transformers --json | tail -n 1

    First the files: every name and shape, all numbers finite, and their SHA256SUMS where there is one. Then, on
    built-in pictures and prompts, features, image tokens, logits and greedy tokens beside the oracles that are
    installed: transformers as it is, transformers with its two faults repaired, and Meta's llama-models. The table is
    made to be pasted into a report.

    float32 is the sharp comparison; in bfloat16 rounding hides small faults. One model is in memory at a time.
    The exit status is 1 when anything differs.
    """
    from vlm.verify import verify as run

    report = run(model, device=device, dtype=dtype, reference=reference)
    say(report.text())
    if as_json:
        say_json(report.record())
    if not report.passed:
        ctx.exit(1)
