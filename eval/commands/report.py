"""`vlm-eval report`: an HTML report and tables."""

import os
from pathlib import Path

import click

from eval.commands.tables import score_lines
from vlm.commands.options import json_option
from vlm.commands.terminal import Command, say, say_json


@click.command(cls=Command, short_help="HTML report and tables.")
@click.argument("folders", metavar="DIR [DIR ...]", nargs=-1, required=True)
@click.option("--out", metavar="FILE", help="The HTML file. [default: report.html in the first DIR]")
@json_option
def report(folders: tuple[str, ...], out: str | None, as_json: bool):
    """Score the runs, print their tables, and write one HTML file that opens offline.

    \b
    vlm-eval report runs/mine
    vlm-eval report runs/mine runs/other --out both.html

    With several runs the report shows them side by side, and which samples changed.

    \b
    With --json the last line is {"report", "runs": {DIR: as in scores.json}}
    """
    from eval.report import write_report
    from eval.run.folder import REPORT
    from eval.scoring import score_folder

    scores = {}
    for folder in folders:
        # A run that is kept where nothing can be written is reported all the same.
        scores[folder] = score_folder(folder, keep=os.access(folder, os.W_OK))
        say(folder)
        for line in score_lines(scores[folder]):
            say(f"    {line}")
    path = Path(out) if out else Path(folders[0]) / REPORT
    write_report([Path(folder) for folder in folders], path)
    say(f"report: {path}")
    if as_json:
        say_json({"report": str(path), "runs": scores})
