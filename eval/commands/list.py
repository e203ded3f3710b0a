"""`vlm-eval list`: the tasks, their data formats, prompts and scorers."""

import click

from vlm.commands.options import json_option
from vlm.commands.terminal import Command, say, say_json


@click.command("list", cls=Command, short_help="The tasks, their data formats, prompts and scorers.")
@json_option
def list_tasks(as_json: bool):
    """Show every task: how its data may lie on disk, how it can be asked, and who can judge the replies.

    \b
    vlm-eval list
    vlm-eval list --json | tail -n 1

    \b
    With --json the last line is
    {"tasks": [{"name", "title", "formats", "prompts", "default_prompt", "scorers", "headline"}]}
    """
    from eval import tasks

    described = [_described(tasks.find(name)) for name in tasks.names()]
    for task in described:
        say(f"{task['name']}: {task['title']}")
        say("    data      " + "\n              ".join(task["formats"]))
        prompts = [f"{name} (default)" if name == task["default_prompt"] else name for name in task["prompts"]]
        say("    prompts   " + ", ".join(prompts))
        scorers = [f"{name} (headline)" if name == task["headline"] else name for name in task["scorers"]]
        say("    scorers   " + ", ".join(scorers))
    if as_json:
        say_json({"tasks": described})


def _described(task) -> dict:
    from eval import scorers

    return {
        "name": task.name,
        "title": task.title,
        "formats": [_format(each) for each in task.formats],
        "prompts": list(task.prompts),
        "default_prompt": task.default_prompt,
        "scorers": [scorer.name for scorer in scorers.for_task(task.family)],
        "headline": task.headline,
    }


def _format(layout) -> str:
    columns = ", ".join(layout.columns)
    return f"{layout.kind} with {columns}" + (f" ({layout.source})" if layout.source else "")
