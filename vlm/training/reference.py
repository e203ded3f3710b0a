"""What the model of a preference run says before it is trained: computed once and kept in the run's folder.

Before it is trained every process has the whole model, whatever becomes of it later: all share the samples alike.
"""

import itertools
import json
from pathlib import Path

import torch
from tqdm import tqdm

from vlm.model import VisionLanguageModel
from vlm.tokenizer_files.disk import write_whole
from vlm.training.data.batches import Example, StepBatches
from vlm.training.objectives import DirectPreference
from vlm.training.parallel.world import World

FILE = "reference.json"


@torch.no_grad()
def reference_margins(
    model: VisionLanguageModel, objective: DirectPreference, data: StepBatches, out: Path, world: World
) -> dict[tuple[int, int], float]:
    """Return the margin of every usable sample by its place, from the folder `out` where they were computed before."""
    path = out / FILE
    if not world.from_main(path.exists()):
        found = []
        examples = (one for one in data.every(world.rank, world.size) if isinstance(one, Example))
        silent = None if world.is_main else True
        for example in tqdm(examples, desc="reference", unit="sample", disable=silent, leave=False):
            found.append([*example.place, float(objective.margins(model, [example]))])
        found = sorted(itertools.chain.from_iterable(world.gather(found)))
        if world.is_main:
            write_whole(path, json.dumps(found).encode())
    with world.main_first():
        kept = json.loads(path.read_text(encoding="utf-8"))
    return {(source, place): margin for source, place, margin in kept}
