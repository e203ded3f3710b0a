"""What the model of a preference run says before it is trained: computed once and kept in the run's folder.

Before it is trained every process has the whole model, whatever becomes of it later: all share the samples alike.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from vlm.model import VisionLanguageModel
from vlm.tokenizer_files.disk import write_whole
from vlm.training.data.batches import Example, StepBatches
from vlm.training.objectives import DirectPreference
from vlm.training.parallel.world import World

FILE = "reference.json"
DECIDING = ("model", "seed", "precision", "max_length", "data", "filters", "num_samples", "digests")
"""Settings of a run on which the margins of its samples, and their places, depend."""


@torch.no_grad()
def reference_margins(
    model: VisionLanguageModel,
    objective: DirectPreference,
    data: StepBatches,
    out: Path,
    world: World,
    settings: Mapping[str, object],
) -> dict[tuple[int, int], float]:
    """Return the margin of every usable sample by its place.

    They are taken from the folder `out` if they were computed there before, of the same model and data by `settings`.
    """
    path, of = out / FILE, {name: settings[name] for name in DECIDING}
    margins = world.from_main(_kept(path, of) if world.is_main else None)
    if margins is None:
        found = []
        examples = (one for one in data.every(world.rank, world.size) if isinstance(one, Example))
        silent = None if world.is_main else True
        for example in tqdm(examples, desc="reference", unit="sample", disable=silent, leave=False):
            found.append([*example.place, float(objective.margins(model, [example]))])
        margins = sorted(itertools.chain.from_iterable(world.gather(found)))
        if world.is_main:
            write_whole(path, json.dumps({"of": of, "margins": margins}).encode())
    return {(source, place): margin for source, place, margin in margins}


def _kept(path: Path, of: Mapping[str, object]) -> list[list] | None:
    """Return the margins in a file; None where there is none, or one of another model or other data."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    # Runs begun before 2026-11-27 kept the margins alone, and not what they are of.
    return kept["margins"] if isinstance(kept, dict) and kept.get("of") == of else None
