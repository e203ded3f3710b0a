"""Batches of drawn charts with their questions, and the dense targets that make a small model read.

A batch is a function of (seed, index, rank), so that a run can go on where it stopped.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vision_encoder.config import VisionConfig
from vision_encoder.preprocess import ImageProcessor
from vlm.prompt import Image, Text, Turn, encode_prompt
from vlm.tokenizer import Tokenizer
from vlm.training.charts import Chart, Question, ask, draw_chart, patch_characters, patch_mask

IGNORED = -100


class QuestionBatch(NamedTuple):
    """Questions of about equal length, padded on the right."""

    ids: Tensor
    """[b, s] int64"""
    labels: Tensor
    """[b, s] int64: the id that each position should predict, IGNORED outside the reply."""
    image_index: Tensor
    """[b] int64: the picture asked about."""
    find: Tensor
    """[b, patches] bool: where the first pointer should look; all False where there is nothing to point at."""
    copy: Tensor
    """[b, patches] bool: where the second pointer should look."""


class ReaderBatch(NamedTuple):
    """Pictures, what is printed in each of their patches, and questions in groups of similar length."""

    pixels: Tensor
    """[m, 1, c, height, width] float32"""
    characters: Tensor
    """[m, patches, characters per patch] int64: byte codes, 0 where there is none."""
    groups: list[QuestionBatch]


class ReaderData(Dataset):
    """Batch `index` of a run: `num_images` charts with up to `num_questions` questions each."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        seed: int,
        rank: int = 0,
        num_images: int = 16,
        num_questions: int = 6,
        num_easy: int = 1000,
        num_reading: int = 0,
    ):
        self.config = config
        self.processor = ImageProcessor(config)
        self.tokenizer = Tokenizer.bytes_only()
        self.seed, self.rank, self.num_images, self.num_questions = seed, rank, num_images, num_questions
        self.num_easy = num_easy
        """Batches over which the charts grow from easy to full difficulty."""
        self.num_reading = num_reading
        """Batches at the start that ask nothing: there the encoder learns to read."""

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> ReaderBatch:
        rng = np.random.default_rng([self.seed, index, self.rank])
        difficulty = min(1.0, 0.2 + 0.8 * index / self.num_easy)
        pixels, characters, rows = [], [], []
        for image_index in range(self.num_images):
            chart = draw_chart(rng, self.config.tile_size, difficulty=difficulty)
            pixels.append(self.processor(chart.image).pixels)
            characters.append(torch.from_numpy(self._characters(chart)))
            for question in ask(rng, chart, self.num_questions) if index >= self.num_reading else ():
                rows.append((image_index, *self._conversation(question), *self._pointers(chart, question)))
        rows.sort(key=lambda row: len(row[1]))
        groups: list[list[tuple]] = []
        for row in rows:
            # A group's padding stays below a quarter of its length.
            if not groups or len(row[1]) > 1.25 * len(groups[-1][0][1]):
                groups.append([])
            groups[-1].append(row)
        return ReaderBatch(torch.stack(pixels), torch.stack(characters), [_group(group) for group in groups])

    def _conversation(self, question: Question) -> tuple[list[int], list[int]]:
        """Return the ids of the whole conversation and the labels of each position."""
        turn = Turn("user", (Image(None), Text(question.question)))
        prompt = encode_prompt(self.tokenizer, [turn]).ids
        reply = [*self.tokenizer.encode(question.answer), self.tokenizer.eot_id]
        return prompt + reply[:-1], [IGNORED] * (len(prompt) - 1) + reply

    def _pointers(self, chart: Chart, question: Question) -> tuple[np.ndarray, np.ndarray]:
        place = (chart.characters, self.config.patch_size, (self.config.grid, self.config.grid))
        find, copy = (patch_mask(place[0], boxes, *place[1:]) for boxes in (question.find_boxes, question.copy_boxes))
        return find, copy

    def _characters(self, chart: Chart) -> np.ndarray:
        grid = (self.config.grid, self.config.grid)
        return patch_characters(chart.characters, self.config.patch_size, grid).astype(np.int64).reshape(-1, 3)


def _group(rows: list[tuple]) -> QuestionBatch:
    longest = max(len(ids) for _, ids, *_ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids, *_ in rows])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, _, labels, *_ in rows])
    image_index = torch.tensor([row[0] for row in rows])
    find, copy = (torch.from_numpy(np.stack([row[place] for row in rows])) for place in (3, 4))
    return QuestionBatch(ids, labels, image_index, find, copy)
