"""Rows, samples and small models for the tests of training."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage

from tests.oracles.cases import Case
from vision_encoder.preprocess import ProcessedImage
from vlm.training.data.batches import Example
from vlm.training.rows import Row, predict


def row_of(case: Case, num_ids: int, first_learned: int = 1) -> Row:
    """Return a parity case as a row that learns every id from `first_learned` on."""
    learned = [place >= first_learned for place in range(len(case.ids))]
    images = [ProcessedImage(picture.pixels, picture.grid) for picture in case.images]
    return Row(ids=case.ids, targets=predict(case.ids, learned, num_ids), images=images)


def examples_of(*rows: Row) -> list[Example]:
    return [Example(str(place), (0, place), [row]) for place, row in enumerate(rows)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def draw_pictures(folder: Path, colours: dict[str, int]) -> None:
    """Write a picture of one grey level under each name."""
    for name, level in colours.items():
        PILImage.fromarray(np.full((28, 28, 3), level, dtype=np.uint8)).save(folder / name)


def same_state(one: dict, other: dict) -> bool:
    """Tell whether two states, of tensors, lists and numbers, are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return set(one) == set(other) and all(same_state(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return one == other
