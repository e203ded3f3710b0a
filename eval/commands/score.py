"""`vlm-eval score`: score again what was answered, without a model."""

import click

from eval.commands.tables import score_lines
from vlm.commands.options import json_option
from vlm.commands.terminal import Command, say, say_json


@click.command(cls=Command, short_help="Score again what was answered, without a model.")
@click.argument("folder", metavar="DIR")
@click.option("--scorer", "scorers", metavar="NAME", multiple=True, help="One of the task's; may be given again.")
@json_option
def score(folder: str, scorers: tuple[str, ...], as_json: bool):
    """Score the answers in a run's folder, of all its shards, and write scores.json.

    \b
    vlm-eval score runs/mine
    vlm-eval score runs/mine --scorer pix2struct --scorer vlmevalkit

    \b
    With --json the last line is what scores.json holds:
    {"tasks": {TASK: {"n", "errors", "scores": {SCORER: {"mean", "stderr", ...}}}}}
    """
    from eval.scoring import score_folder

    scores = score_folder(folder, scorers or None)
    for line in score_lines(scores):
        say(line)
    if as_json:
        say_json(scores)
