"""Batches for the reader: drawn pages and charts, questions about them, and the dense targets that make it read.

A batch is a function of (seed, index, rank), so that a run can go on where it stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vision_encoder.config import VisionConfig
from vision_encoder.preprocess import ImageProcessor
from vlm.prompt import Image, Text, Turn, encode_prompt
from vlm.tokenizer import Tokenizer
from vlm.training.charts import Chart, Question, ask, draw_chart, patch_characters
from vlm.training.reader_targets import PatchLinks, character_codes, patch_links, pointer_targets
from vlm.training.text_pages import draw_page

IGNORED = -100
CHARACTERS_PER_PATCH = 5
"""Two lines of narrow print can lie in one patch."""


class QuestionBatch(NamedTuple):
    """Questions of about equal length, padded on the right."""

    ids: Tensor
    """[b, s] int64"""
    labels: Tensor
    """[b, s] int64: the id that each position should predict, IGNORED outside the reply."""
    image_index: Tensor
    """[b] int64: the picture asked about."""
    pointers: Tensor
    """[b, NUM_POINTERS, s, p] bool: see `reader_targets.pointer_targets`."""
    kinds: list[str]
    """What each asks for."""
    first_seeing: int
    """The position of the image marker, the same in all rows: earlier ones see no picture."""


class ReaderBatch(NamedTuple):
    """Pictures, what is printed in each of their patches, and questions in groups of similar length."""

    pixels: Tensor
    """[m, 1, c, height, width] float32"""
    offset: tuple[int, int]
    """Where on a larger picture the tile is pretended to lie, (rows, cols) in patches."""
    characters: Tensor
    """[m, p, characters per patch] int64: classes, 0 where there is none."""
    links: PatchLinks
    """Each int16 [m, p]."""
    groups: list[QuestionBatch]


@dataclass(frozen=True, kw_only=True)
class Diet:
    """What a stage of the training is fed."""

    num_images: int
    """Pictures in a batch."""
    share_pages: float
    """How many of them are pages of print rather than charts."""
    num_questions: int
    """Questions about each chart; none while the encoder learns to read."""
    easy: float = 1.0
    """The difficulty of the first batch's charts; it grows to 1 over the stage's first half."""


class ReaderData(Dataset):
    """The batches of one stage; `rank` of `num_ranks` processes draws its part of the pictures."""

    def __init__(
        self,
        config: VisionConfig,
        tokenizer: Tokenizer,
        diet: Diet,
        *,
        num_batches: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        draw: Callable[..., Chart] = draw_chart,
    ):
        self.config, self.tokenizer, self.diet, self.draw = config, tokenizer, diet, draw
        self.processor = ImageProcessor(config)
        self.num_batches, self.seed, self.rank, self.num_ranks = num_batches, seed, rank, num_ranks

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> ReaderBatch:
        shared = np.random.default_rng([self.seed, index])
        offset = tuple(int(patches) for patches in shared.integers(0, self.config.grid + 1, 2))
        rng = np.random.default_rng([self.seed, index, self.rank])
        difficulty = min(1.0, self.diet.easy + (1 - self.diet.easy) * 2 * index / self.num_batches)
        pixels, characters, links, rows = [], [], [], []
        for image_index in range(self.diet.num_images // self.num_ranks):
            if rng.random() < self.diet.share_pages:
                image, printed = draw_page(rng, self.config.tile_size)
                links.append(PatchLinks(*np.zeros((4, self.config.grid**2), dtype=np.int16)))
            else:
                chart = self.draw(rng, self.config.tile_size, difficulty=difficulty)
                image, printed = chart.image, chart.characters
                links.append(patch_links(chart, self.config.patch_size, self.config.grid))
                for question in ask(rng, chart, self.diet.num_questions) if self.diet.num_questions else ():
                    rows.append((image_index, *self._conversation(chart, question), question.kind))
            pixels.append(self.processor(image).pixels)
            grid = (self.config.grid, self.config.grid)
            codes = patch_characters(printed, self.config.patch_size, grid, CHARACTERS_PER_PATCH)
            characters.append(torch.from_numpy(character_codes(codes.reshape(-1, codes.shape[-1]))))
        return ReaderBatch(
            torch.stack(pixels),
            offset,
            torch.stack(characters),
            PatchLinks(*(torch.from_numpy(np.stack(part)) for part in zip(*links, strict=True))),
            [_group(group, self.tokenizer.image_marker_id) for group in _by_length(rows)],
        )

    def _conversation(self, chart: Chart, question: Question) -> tuple[list[int], list[int], np.ndarray]:
        """Return the ids of the whole conversation, the labels of each position, and the pointers."""
        turn = Turn("user", (Image(None), Text(question.question)))
        prompt = encode_prompt(self.tokenizer, [turn]).ids
        reply = [*self.tokenizer.encode(question.answer), self.tokenizer.eot_id]
        places = self.config.patch_size, self.config.grid
        pointers = pointer_targets(self.tokenizer, chart, question, prompt, reply, *places)
        return prompt + reply[:-1], [IGNORED] * (len(prompt) - 1) + reply, pointers


def _by_length(rows: list[tuple]) -> list[list[tuple]]:
    """Return rows in groups whose padding stays below a third of their length."""
    groups: list[list[tuple]] = []
    for row in sorted(rows, key=lambda row: len(row[1])):
        if not groups or len(row[1]) > 1.5 * len(groups[-1][0][1]):
            groups.append([])
        groups[-1].append(row)
    return groups


def _group(rows: list[tuple], marker_id: int) -> QuestionBatch:
    longest = max(len(ids) for _, ids, *_ in rows)
    pointers = torch.zeros(len(rows), rows[0][3].shape[0], longest, rows[0][3].shape[2], dtype=torch.bool)
    for index, (*_, places, _) in enumerate(rows):
        pointers[index, :, : places.shape[1]] = torch.from_numpy(places)
    return QuestionBatch(
        torch.tensor([ids + [0] * (longest - len(ids)) for _, ids, *_ in rows]),
        torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, _, labels, *_ in rows]),
        torch.tensor([image_index for image_index, *_ in rows]),
        pointers,
        [kind for *_, kind in rows],
        rows[0][1].index(marker_id),
    )
