"""Draw the learning curves of a run from its log.

python -m vlm.training.reader.plot runs/reader/log.jsonl docs/learning_curves.png
"""

import itertools
import json
from pathlib import Path

import click
import numpy as np

LOSSES = ("answer", "characters", "links", "partners", "shades", "magnitudes", "pointers")
KINDS = ("named_value", "series_value", "reverse", "highest", "largest_value", "title", "count", "comparison")
SMOOTHED_OVER = 5
"""Log lines."""


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("picture", type=click.Path(dir_okay=False, path_type=Path))
def main(log: Path, picture: Path) -> None:
    """Draw PICTURE from LOG: the losses, and the share of whole replies that were right, by kind of question."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_log(log)
    minutes = np.array([row["elapsed_s"] / 60 for row in rows])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name in LOSSES:
        # A loss that its stage does not use is zero, or not there.
        left.plot(minutes, smooth([row.get(name) or np.nan for row in rows]), label=name)
    left.set(xlabel="minutes of training", ylabel="loss", ylim=(0, None))
    for kind in KINDS:
        right.plot(minutes, smooth([row["exact"].get(kind, np.nan) for row in rows]), label=kind.replace("_", " "))
    right.set(xlabel="minutes of training", ylabel="whole replies right, of new charts", ylim=(0, 1))
    begun = [rows[0], *(after for before, after in itertools.pairwise(rows) if before["stage"] != after["stage"])]
    for axes in (left, right):
        for row in begun:
            axes.axvline(row["elapsed_s"] / 60, color="0.8", zorder=0)
            axes.annotate(
                row["stage"], (row["elapsed_s"] / 60, 1), xycoords=("data", "axes fraction"), xytext=(1, 3),
                textcoords="offset points", rotation=30, fontsize="small", color="0.4", annotation_clip=False,
            )  # fmt: skip
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(picture, dpi=90, metadata={"Software": None})


def read_log(log: Path) -> list[dict]:
    """Return the lines of a log; what was done again after a cut stands once, as it was done last."""
    rows: list[dict] = []
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        while rows and rows[-1]["elapsed_s"] >= row["elapsed_s"]:
            rows.pop()
        rows.append(row)
    return rows


def smooth(values: list[float]) -> np.ndarray:
    """Return the mean of each value and the few before it, leaving out what is not a number."""
    parts = [np.array(values[max(0, i - SMOOTHED_OVER + 1) : i + 1], dtype=float) for i in range(len(values))]
    return np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts])


if __name__ == "__main__":
    main()
