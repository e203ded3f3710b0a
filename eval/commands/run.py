"""`vlm-eval run`: answer every question, score, report; run again to resume."""

import contextlib
import functools
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from eval.commands.run_options import how_it_goes, what_is_asked, who_answers
from eval.commands.tables import score_lines
from vlm.commands.options import json_option, model_options
from vlm.commands.terminal import Command, say, say_json
from vlm.errors import VLMError

if TYPE_CHECKING:
    from eval.backends import Backend
    from eval.run.runner import Outcome, RunSettings

_LOCAL_ONLY = ("likelihood", "max_restarts", "batch_size", "device", "dtype", "quantize", "reference", "adapters")
_LOCAL_ONLY += ("num_views", "thin")
_SERVER_ONLY = ("base_url", "concurrency")


@click.command(cls=Command, short_help="Answer every question, score, report; run again to resume.")
@click.argument("tasks", metavar="TASK [TASK ...]", nargs=-1, required=True)
@what_is_asked
@model_options
@who_answers
@how_it_goes
@json_option
@click.pass_context
def run(ctx: click.Context, tasks: tuple[str, ...], as_json: bool, **options):
    """Answer every question of the tasks, then score and report.

    \b
    vlm-eval run chartqa --data ~/ChartQA --out runs/mine
    vlm-eval run ai2d --data ~/ai2d --variant opaque --model ./Llama-3.2-11B-Vision-Instruct --out runs/11b
    vlm-eval run chartqa ai2d --data chartqa=~/ChartQA --data ai2d=~/ai2d --out runs/both --likelihood letters
    vlm-eval run docvqa --data ~/DocVQA --backend openai --base-url http://localhost:8000/v1 --out runs/server
    vlm-eval run chartqa --data ~/ChartQA --out runs/mine --limit 20 --json | tail -n 1

    Whatever ends a run (Ctrl-C, a crash, a full disk), the same command goes on with it. Should anything that decides
    the answers be different then, it says what and does nothing.

    \b
    With --json the last line is
    {"out", "samples", "errors", "tasks": as in scores.json}
    """
    from eval.run.interruption import interruptible

    settings = _settings(tasks, options, ctx.obj or ())
    open_backend = _backend_opener(options)
    with interruptible():
        try:
            outcome = _answered(settings, open_backend, options)
            scores = _scored(settings, outcome, with_report=not options["no_report"])
        except KeyboardInterrupt:
            _say_how_to_resume(ctx.obj or ())
            raise
        except VLMError as error:
            for difference in getattr(error, "differences", ()):
                click.echo(str(difference), err=True)
            raise
    if as_json:
        say_json({"out": str(settings.out), "samples": outcome.num_samples, "errors": outcome.num_errors, **scores})
    if outcome.num_errors > options["max_errors"]:
        ctx.exit(1)


def _settings(tasks: tuple[str, ...], options: dict, typed: tuple[str, ...]) -> "RunSettings":
    from eval.run.runner import RunSettings
    from eval.run.selection import Selection
    from eval.run.shards import Shard

    selection = Selection(
        limit=options["limit"],
        samples=options["samples"],
        options={name: options[name] for name in ("split", "variant") if options[name] is not None},
        blank_images=options["blank_images"],
    )
    if selection.samples and not selection.ids(()):
        raise click.UsageError("--samples names none; give ids with commas between them")
    try:
        shard = None if options["shard"] is None else Shard.parse(options["shard"])
    except VLMError as error:
        raise click.UsageError(error.message) from None
    if options["engine"] == "ray" and shard is not None:
        raise click.UsageError("--engine ray makes the shards itself; say how many with --workers, without --shard")
    return RunSettings(
        data=_places(tasks, options["places"]),
        out=Path(os.path.expanduser(options["out"])),
        selection=selection,
        shard=shard,
        command=("vlm-eval", *typed),
        **{name: options[name] for name in ("prompt", "max_new_tokens", "batch_size", "new_run", "retry_errors")},
    )


def _places(tasks: tuple[str, ...], given: tuple[str, ...]) -> dict[str, Path]:
    """Return where the data of each task lies."""
    from eval.tasks import find, names

    for name in tasks:
        find(name)
    places = {}
    for text in given:
        name, equals, path = text.partition("=")
        if equals and name in tasks:
            places[name] = Path(os.path.expanduser(path))
        elif equals and name in names():
            raise click.UsageError(f"--data says where {name} lies, which is none of the tasks; add it or leave it out")
        else:
            everything = Path(os.path.expanduser(text))
            places.update(dict.fromkeys([name for name in tasks if name not in places], everything))
    missing = [name for name in tasks if name not in places]
    if missing:
        raise click.UsageError(f"--data says nothing of {', '.join(missing)}; give one PATH, or TASK=PATH for each")
    return {name: places[name] for name in tasks}


def _backend_opener(options: dict):
    """Return what makes the backend; it can be sent to another process."""
    drawing = options["temperature"] > 0
    config = {name: options[name] for name in ("temperature", "top_p", "seed")}
    if drawing and config["seed"] is None:
        config["seed"] = 0
    context = click.get_current_context()
    without_effect = _LOCAL_ONLY if options["backend"] == "openai" else _SERVER_ONLY
    for option in context.command.params:
        if option.name in without_effect and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{option.opts[0]} has no effect with --backend {options['backend']}; leave it out")
    if options["backend"] == "openai":
        if options["base_url"] is None:
            raise click.UsageError("--backend openai needs --base-url, as http://localhost:8000/v1")
        return functools.partial(_server, options["base_url"], options["model"], config, options)
    return functools.partial(_local, config, options)


def _server(base_url: str, model: str | None, config: dict, options: dict) -> "Backend":
    from eval.backends.openai import DEFAULT_CONCURRENCY, OpenAIBackend

    concurrency = options["concurrency"] or DEFAULT_CONCURRENCY
    return OpenAIBackend(base_url, model, generation=config, concurrency=concurrency, timeout_s=options["timeout_s"])


def _local(config: dict, options: dict) -> "Backend":
    from eval.backends.checkpoint_model import CheckpointModel
    from eval.backends.local import MAX_RESTARTS, LocalBackend

    model = CheckpointModel(
        source=options["model"],
        device=options["device"],
        dtype=options["dtype"],
        reference=options["reference"],
        quantize=options["quantize"],
        adapters=tuple(os.path.abspath(folder) for folder in options["adapters"]),
        num_views=options["num_views"],
        thin=options["thin"],
    )
    restarts = MAX_RESTARTS if options["max_restarts"] is None else options["max_restarts"]
    return LocalBackend(
        model,
        generation=config,
        likelihood=options["likelihood"],
        timeout_s=options["timeout_s"],
        max_restarts=restarts,
    )


def _answered(settings: "RunSettings", open_backend, options: dict) -> "Outcome":
    if options["engine"] == "ray":
        from eval.run.ray_engine import run_on_ray

        uses_accelerator = options["backend"] == "local" and options["device"] != "cpu"
        outcome = run_on_ray(settings, open_backend, options["workers"] or 2, uses_accelerator=uses_accelerator)
    else:
        from eval.run.runner import run as answer

        outcome = answer(settings, open_backend())
    if outcome.moved_to is not None:
        say(f"earlier answers are in {outcome.moved_to}")
    new = outcome.num_samples - outcome.num_before
    before = f", {outcome.num_before} of them by an earlier run" if outcome.num_before else ""
    say(f"{outcome.num_samples} samples answered{before}, {outcome.num_errors} errors ({new} asked now)")
    return outcome


def _scored(settings: "RunSettings", outcome: "Outcome", *, with_report: bool) -> dict:
    if settings.shard is not None:
        say(f"when all {settings.shard.count} shards are done: vlm-eval score {shlex.quote(str(settings.out))}")
        return {}
    from eval.scoring import score_folder

    scores = score_folder(settings.out)
    for line in score_lines(scores):
        say(line)
    if with_report:
        from eval.report import write_report
        from eval.run.folder import REPORT

        write_report([settings.out], settings.out / REPORT)
        say(f"report: {settings.out / REPORT}")
    return scores


def _say_how_to_resume(typed: tuple[str, ...]) -> None:
    command = shlex.join(["vlm-eval", *(word for word in typed if word != "--new-run")])
    with contextlib.suppress(OSError):  # the terminal may be gone
        click.echo(f"\nwhat was answered is kept; to go on:\n    {command}", err=True)
