"""`vlm-eval compare`: two runs on the same samples, with the error of their difference."""

import click

from vlm.commands.options import json_option
from vlm.commands.terminal import Command, say, say_json


@click.command(cls=Command, short_help="Paired comparison of two runs, with its error.")
@click.argument("first", metavar="DIR_A")
@click.argument("second", metavar="DIR_B")
@json_option
def compare(first: str, second: str, as_json: bool):
    """Compare run B with run A on the samples that both answered.

    \b
    vlm-eval compare runs/before runs/after
    vlm-eval compare runs/11b runs/90b --json | tail -n 1

    Each scorer's line shows both scores, the difference with its 95 % interval (paired bootstrap over pictures, since
    questions about one picture fall together), McNemar's exact test (which takes questions for independent: where
    several are about one picture its p tends to be too small), and the smallest difference that a comparison
    of this size would have shown four times in five. A task that one run alone has is named.

    \b
    With --json the last line is
    {"tasks": {TASK: {"n", "scores": {SCORER: {"difference", "interval", "p_value", ...}}}},
    "tasks_only_in_first": [TASK], "tasks_only_in_second": [TASK]}
    """
    from eval.comparison import compare as compared

    found = compared(first, second)
    for task, result in found["tasks"].items():
        left_out = result["only_in_first"] + result["only_in_second"]
        more = f" ({left_out} answered in one run alone are left out)" if left_out else ""
        say(f"{task}: {result['n']} samples in both{more}")
        width = max(map(len, result["scores"]), default=0)
        for name, score in result["scores"].items():
            say(f"    {name:<{width}}  {_line(score)}")
    for side in ("first", "second"):
        for task in found[f"tasks_only_in_{side}"]:
            say(f"{task}: answered in the {side} run alone and not compared")
    if as_json:
        say_json(found)


def _line(score: dict) -> str:
    low, high = score["interval"]
    interval = "interval unknown" if low is None else f"{100 * low:+.2f}, {100 * high:+.2f}"
    test = ""
    if score["p_value"] is not None:
        changed = f"{score['only_first_right']} lost, {score['only_second_right']} won"
        test = f", {changed}, McNemar p, as if independent = {score['p_value']:.3g}"
    detectable = "" if score["detectable"] is None else f", detectable from {100 * score['detectable']:.2f}"
    scores = f"{100 * score['first']:6.2f} -> {100 * score['second']:6.2f}"
    return f"{scores}  {100 * score['difference']:+.2f} [{interval}]{test}{detectable}"
