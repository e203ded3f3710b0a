"""What the model of a preference run says before it is trained: computed once and kept in the run's folder."""

import json
from pathlib import Path

import torch
from tqdm import tqdm

from vlm.model import VisionLanguageModel
from vlm.tokenizer_files.disk import write_whole
from vlm.training.data.batches import Example, StepBatches
from vlm.training.objectives import DirectPreference

FILE = "reference.json"


@torch.no_grad()
def reference_margins(
    model: VisionLanguageModel, objective: DirectPreference, data: StepBatches, out: Path
) -> dict[tuple[int, int], float]:
    """Return the margin of every usable sample by its place, from the folder `out` where they were computed before."""
    path = out / FILE
    if not path.exists():
        found = []
        examples = (one for one in data.every() if isinstance(one, Example))
        for example in tqdm(examples, desc="reference", unit="sample", disable=None, leave=False):
            found.append([*example.place, float(objective.margins(model, [example]))])
        write_whole(path, json.dumps(found).encode())
    return {(source, place): margin for source, place, margin in json.loads(path.read_text(encoding="utf-8"))}
