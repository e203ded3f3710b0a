"""Train the small reader of charts from nothing.

    torchrun --nproc-per-node 2 -m vlm.training.reader --out runs/reader
    python -m vlm.training.reader --out runs/reader    # on a CUDA GPU
    python -m vlm.training.reader --out runs/reader --real ~/ChartQA/train    # real charts too, from the sixth stage on
    python -m vlm.training.reader --out runs/more --model vlm/default_model --stage "more of everything" --minutes 10
    # on from what ships, through this stage and those after it

Run again with the same options to go on where it stopped.
"""

import signal
from pathlib import Path

import click
import torch

from vlm.errors import VLMError
from vlm.training.reader.run import Run
from vlm.training.reader.stages import STAGES


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/reader", show_default=True)
@click.option(
    "--model", "start", type=click.Path(exists=True, path_type=Path), help="Folder of a reader to train further."
)
@click.option("--stage", type=click.Choice([stage.name for stage in STAGES]), help="The first to go through.")
@click.option(
    "--real",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="Folder of real charts, as ChartQA's train folder.",
)
@click.option(
    "--print",
    "printed",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="Folder of real charts with their text boxes, as OpenCQA's.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Of training in all: stages end and rates fall by the clock rather than by the number of batches.",
)
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    out: Path,
    start: Path | None,
    stage: str | None,
    real: Path | None,
    printed: Path | None,
    minutes: float | None,
    seed: int,
) -> None:
    """Train the small reader of charts from nothing; run again with the same options to go on."""
    # What sharp attention lets underflow is slow to compute with: the backward pass took 7 times as long.
    torch.set_flush_denormal(True)
    names = [each.name for each in STAGES]
    try:
        run = Run(out, STAGES[names.index(stage) if stage else 0 :], seed, start, real, printed, minutes)
    except VLMError as error:
        raise click.ClickException(str(error)) from None
    signal.signal(signal.SIGTERM, run.stop)
    run.train()


if __name__ == "__main__":
    main()
