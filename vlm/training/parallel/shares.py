"""The data shared by several processes, which all have to go the same way through the model.

Weights that are gathered when a layer is entered have to be asked for by all processes alike. So each process computes
as many parts of a step as the one with most, and each part has an image if any of the step has one; what is added for
that counts nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from vision_encoder.config import VisionConfig
from vision_encoder.preprocess import ProcessedImage
from vlm.training.data.batches import Example, Poison, StepBatches, StepData
from vlm.training.objectives import Objective
from vlm.training.parallel.world import World
from vlm.training.rows import IGNORED, Row, images_of


class Part(NamedTuple):
    """Examples that are computed at once."""

    examples: list[Example]
    counts: bool = True
    """Whether anything is learned from them."""

    @property
    def rows(self) -> list[Row]:
        return [row for example in self.examples for row in example.rows]


class RankShare(Dataset):
    """Every so many samples of each step: between them all processes have the steps of one."""

    def __init__(self, whole: StepBatches, place: int, count: int):
        self.whole, self.place, self.count = whole, place, count

    def __getitem__(self, index: int) -> StepData:
        first, size = index * self.whole.batch_size, self.whole.batch_size
        return self.whole.at(range(first + self.place, first + size, self.count))


def share_of(data: Dataset, world: World) -> Dataset:
    """Return of the samples of every step those that are this process's."""
    count = world.extent("data")
    return data if count == 1 else RankShare(data, world.place("data"), count)


class Counts(NamedTuple):
    """What went into a step."""

    samples: int
    tokens: int
    poison: list[Poison]


def counted(data: StepData) -> Counts:
    tokens = sum(len(row.ids) for example in data.examples for row in example.rows)
    return Counts(len(data.examples), tokens, data.poison)


def added(counts: Sequence[Counts]) -> Counts:
    """Return what went into a step in all processes together."""
    samples, tokens, poison = zip(*counts, strict=True)
    return Counts(sum(samples), sum(tokens), [one for part in poison for one in part])


def in_parts(examples: Sequence[Example], size: int | None, *, apart: bool = False) -> list[Part]:
    """Return `examples` in parts of `size`; None: all as one.

    apart: take each row for an example of its own, so that one of many rows does not come as a whole.
    """
    if apart and size is not None:
        examples = [example._replace(rows=[row]) for example in examples for row in example.rows]
    size = size or max(len(examples), 1)
    return [Part(list(examples[start : start + size])) for start in range(0, len(examples), size)]


def evened(
    parts: list[Part], world: World, data: StepBatches, vision: VisionConfig | None, objective: Objective
) -> list[Part]:
    """Return this process's parts, and as many that count nothing as it takes to go the same way as the others."""
    shares = world.gather((len(parts), any(images_of(part.rows) for part in parts)), "data")
    counts, pictured = zip(*shares, strict=True)
    missing = max(counts) - len(parts)
    if missing:
        parts = parts + [Part([objective.uncounted(_stand_in(data))], counts=False)] * missing
    if any(pictured):
        parts = [part if images_of(part.rows) else _with_blank(part, vision) for part in parts]
    return parts


def _stand_in(data: StepBatches) -> Example:
    """Return an example of the data's form in which there is nothing to learn."""
    example = next(one for one in data.every() if isinstance(one, Example))
    rows = [Row(ids=row.ids[:1], targets=[IGNORED], images=[]) for row in example.rows]
    return example._replace(rows=rows)


def _with_blank(part: Part, vision: VisionConfig) -> Part:
    """Return `part` with a blank image that no text sees, since it has no marker."""
    blank = ProcessedImage(torch.zeros(1, 3, vision.tile_size, vision.tile_size), (1, 1))
    first, *others = part.examples
    row, *rows = first.rows
    return part._replace(examples=[first._replace(rows=[replace(row, images=[blank]), *rows]), *others])
