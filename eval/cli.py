"""The command line of the harness, `vlm-eval` or `python -m eval`. Its commands are in `eval/commands/`."""

import sys
from typing import NoReturn

import click

from eval.commands.compare import compare
from eval.commands.import_predictions import import_predictions
from eval.commands.list import list_tasks
from eval.commands.report import report
from eval.commands.run import run
from eval.commands.score import score
from vlm.cli import ExitStatusGroup


class RememberingGroup(ExitStatusGroup):
    """Hands on what was typed, which a run keeps and prints when it is interrupted."""

    def main(self, args=None, *rest, **kwargs) -> NoReturn:
        typed = list(sys.argv[1:] if args is None else args)
        super().main(typed, *rest, **{"obj": tuple(typed), **kwargs})


@click.group(cls=RememberingGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sightline-vlm", prog_name="vlm-eval")
def main():
    """Score vision-language models so that others can repeat it.

    \b
    vlm-eval list                                             the benchmarks, and how their data may lie
    vlm-eval run chartqa --data ~/ChartQA --out runs/mine     ask, score, report; again to go on after a stop
    vlm-eval score runs/mine --scorer pix2struct              score again by another rule, without the model
    vlm-eval compare runs/mine runs/other                     is the difference more than luck?
    vlm-eval report runs/mine runs/other                      one HTML file with every answer
    vlm-eval import samples_chartqa.jsonl --out runs/theirs   another harness's predictions

    A run's folder holds manifest.json (what was run), predictions.jsonl (every answer), scores.json and report.html.

    Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted (a run can be resumed).
    """


for command in (list_tasks, run, score, report, compare, import_predictions):
    main.add_command(command)
