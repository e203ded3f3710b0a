"""`vlm-eval import`: take another harness's predictions over, and say where its figures and ours differ."""

import os
from pathlib import Path

import click

from eval.commands.tables import score_lines
from vlm.commands.options import json_option
from vlm.commands.terminal import Command, say, say_json

MAX_NAMED = 10
"""Questions that differ, in the table; --json has all."""


@click.command("import", cls=Command, short_help="Take over another harness's predictions and score them.")
@click.argument("file")
@click.option("--out", metavar="DIR", required=True, help="The folder of the run that is made of them.")
@click.option("--task", metavar="TASK", help="Of which they are. [default: by the name of the file]")
@json_option
@click.pass_context
def import_predictions(ctx: click.Context, file: str, out: str, task: str | None, as_json: bool):
    """Make a run of another harness's predictions and score it by every rule, theirs among them.

    \b
    vlm-eval import logs/20260101_samples_chartqa.jsonl --out runs/theirs              lmms-eval --log_samples
    vlm-eval import results/samples_chartqa_2026-01-01T10-00-00.jsonl --out runs/other lm_eval --log_samples
    vlm-eval import GPT4o_ChartQA_TEST_result.xlsx --out runs/third                    VLMEvalKit

    What the file says of its own score is set beside what our scorer of the same rule says, question by question. The
    folder is a run like any other: score, report and compare take it.

    \b
    With --json the last line is
    {"harness", "task", "agreement": [{"figure", "scorer", "n", "theirs", "ours", "differ": [ID]}], "scores"}
    """
    from eval.prediction_files import read_predictions
    from eval.prediction_files.taking_over import agreement, write_run
    from eval.scoring import score_folder

    path, folder = Path(os.path.expanduser(file)), Path(os.path.expanduser(out))
    found = read_predictions(path, task)
    write_run(found, path, folder, ("vlm-eval", *(ctx.obj or ())))
    scores = score_folder(folder)
    say(f"{len(found.answers)} replies of {found.harness}, {found.task}")
    both = agreement(found)
    for each in both:
        say(_line(each))
    for line in score_lines(scores):
        say(line)
    if as_json:
        say_json({"harness": found.harness, "task": found.task, "agreement": both, "scores": scores})


def _line(each: dict) -> str:
    scores = f"theirs {100 * each['theirs']:.2f}, ours {100 * each['ours']:.2f}"
    line = f"    {each['figure']} = {each['scorer']}: {scores} of {each['n']}"
    if not each["differ"]:
        return f"{line}, the same to the last sample"
    named = ", ".join(each["differ"][:MAX_NAMED])
    more = "" if len(each["differ"]) <= MAX_NAMED else ", ..."
    return f"{line}; {len(each['differ'])} differ: {named}{more}"
