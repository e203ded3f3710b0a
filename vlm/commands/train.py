"""`vlm train`: a run from a file of settings."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from vlm.commands.options import json_option
from vlm.commands.terminal import Command, say, say_json


@click.command(cls=Command, short_help="Train or fine-tune.")
@click.argument("config", metavar="CONFIG", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE ...]", nargs=-1)
@json_option
def train(config: Path, overrides: tuple[str, ...], as_json: bool):
    """Train or fine-tune as CONFIG, a TOML or YAML file, says; KEY=VALUE sets single keys on top.

    \b
    vlm train sft.toml
    vlm train sft.toml optimizer.lr=5e-5 steps=1000 out=runs/slower
    vlm train sft.toml data.0.path=more.jsonl trained.lora.rank=32

    Run it again to go on where it stopped: after a kill, a crash or Ctrl-C, bit for bit as if nothing had happened.
    The keys are listed in docs/training.md.
    """
    # A reward function may lie in a module of the folder where the command is run.
    sys.path.insert(0, "")

    from vlm.training.config import TrainConfig
    from vlm.training.settings import read_settings

    settings = read_settings(TrainConfig, config, overrides)

    import torch

    from vlm.training.loop import Training

    # On a CPU attention underflows to numbers that are slow to compute with.
    torch.set_flush_denormal(True)
    training = Training(settings)
    if training.num_done > 0 and training.world.is_main:
        say(f"going on after step {training.num_done} of {training.num_steps}")
    with _told_by_signals(training.stop):
        report = training.train()
    training.world.leave()
    if not training.world.is_main:
        return
    loss = "none" if report.loss is None else f"{report.loss:.4f}"
    say(f"{report.steps} steps, loss {loss}; {report.bad_steps} steps and {report.poison} samples were left out")
    if report.failed_saves:
        say(f"{report.failed_saves} checkpoints could not be written")
    say(f"wrote {report.result}")
    say("no curves: matplotlib is not installed" if report.curves is None else f"drew {report.curves}")
    if as_json:
        shown = {name: str(value) if isinstance(value, Path) else value for name, value in report._asdict().items()}
        say_json(shown)


@contextmanager
def _told_by_signals(stop: Callable) -> Iterator[None]:
    """Call `stop` where the run is interrupted, ended, or loses its terminal."""
    kinds = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Under nohup a run is to go on without its terminal.
        kinds.append(signal.SIGHUP)
    handlers = {kind: signal.signal(kind, stop) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
