"""What a run tells: a line of JSON a step, the samples it could not use, and a picture of its curves."""

import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from vlm.packages import needed
from vlm.tokenizer_files.disk import write_whole
from vlm.training.data.batches import Poison

logger = logging.getLogger(__name__)

LOG, SKIPPED, CURVES, BOARD = "log.jsonl", "skipped_samples.jsonl", "curves.png", "tensorboard"


class Journal:
    """The log of the run in `folder`."""

    def __init__(self, folder: Path, *, num_done: int, tensorboard: bool = False):
        """Go on after `num_done` steps: lines of later ones, which will be done again, are dropped."""
        self.folder = folder
        self._board = None
        if tensorboard:
            needed("tensorboard", "tensorboard = true")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / BOARD), purge_step=num_done + 1)
        self._log, self._skipped = Lines(folder / LOG, lambda row: row["step"] <= num_done), Lines(folder / SKIPPED)
        self._poison = {row["id"] for row in read_lines(folder / SKIPPED)}

    @property
    def num_poison(self) -> int:
        """Samples that could not be used."""
        return len(self._poison)

    def write(self, row: dict) -> None:
        """Write the line of a step."""
        self._log.add(row)
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, row["step"])
            self._board.flush()

    def poison(self, sample: Poison) -> None:
        """Name a sample that was left out, once."""
        if sample.id not in self._poison:
            self._poison.add(sample.id)
            logger.warning("sample %s is left out: %s", sample.id, sample.reason)
            self._skipped.add(sample._asdict())


class Lines:
    """A file of JSON lines, added to one by one; on a full disk they wait for room, and the run goes on."""

    def __init__(self, path: Path, keep: Callable[[dict], bool] = lambda row: True):
        """Leave of the lines that are there those that `keep` wants, without one that a kill cut short."""
        self.path = path
        self._waiting: list[str] = []
        if path.exists():
            rows = [row for row in read_lines(path) if keep(row)]
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def add(self, row: dict) -> None:
        self._waiting.append(json.dumps(row) + "\n")
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(self._waiting)
        except OSError as error:
            # After half a line the next one could not be read.
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            if len(self._waiting) == 1:
                logger.error("%s cannot be written to (%s); its lines wait for room", self.path.name, error.strerror)
        else:
            self._waiting.clear()


def read_lines(path: Path) -> list[dict]:
    """Return the lines of a log; a last one that a kill cut short is left out."""
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]


def draw_curves(folder: Path) -> Path | None:
    """Draw loss, gradient norm, learning rate and reward over the steps; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None

    rows = [row for row in read_lines(folder / LOG) if row["loss"] is not None]
    titles = {"loss": "loss", "grad_norm": "norm of the gradient", "lr": "learning rate", "reward": "mean reward"}
    titles = {name: title for name, title in titles.items() if name != "reward" or (rows and name in rows[0])}
    figure = Figure(figsize=(3.7 * len(titles), 3.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], color="tab:blue", linewidth=1)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    figure.savefig(folder / CURVES, dpi=90, metadata={"Software": None})
    return folder / CURVES
