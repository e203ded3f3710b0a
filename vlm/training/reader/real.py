"""Teach a reader the questions of people: its decoder learns from real charts and drawn ones, its eyes stay.

    torchrun --nproc-per-node 2 -m vlm.training.reader.real --model runs/reader/model --data ~/ChartQA/train

Nothing says where on a real chart an answer stands, but a model that can read learns from the answer alone. Every
picture is encoded once and its tokens are kept (2 MB for four tiles), so that a step costs no more than the decoder.
Drawn charts with all their pointers are learned beside them, lest anything be forgotten.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from vision_encoder.image_limits import ImageError
from vision_encoder.preprocess import ImageProcessor
from vlm.errors import VLMError
from vlm.training.reader.data import (
    Diet,
    QuestionBatch,
    ReaderData,
    conversation,
    question_groups,
    with_labels,
)
from vlm.training.reader.folder import load_reader, save_reader
from vlm.training.reader.model import Reader
from vlm.training.reader.optimizers import optimizers_of, set_rates
from vlm.training.reader.run import LOG_EVERY, join_processes
from vlm.training.reader.targets import NUM_POINTERS, Pointers
from vlm.training.reader.vocabulary import reader_tokenizer
from vlm.training.reader.wires import wire_pointers

DRAWN = Diet(num_images=4, share_pages=0.0, num_questions=12, share_several_series=0.25, share_sheets=0.4)
WEIGHT_OF_POINTERS = 0.6
PICTURES_TOGETHER = 8


class Lesson(NamedTuple):
    """Pictures that were seen, and questions about them."""

    tokens: Tensor
    """[m, t, p, d] float16"""
    groups: list[QuestionBatch]


class Asked(nn.Module):
    """The losses of a step: a lesson of real charts and one of drawn ones."""

    def __init__(self, reader: Reader):
        super().__init__()
        self.reader = reader

    def forward(self, real: Lesson, drawn: Lesson) -> tuple[Tensor, Tensor]:
        """Return the loss of the real answers, and that of the drawn answers with their pointers."""
        answers, _ = self.reader.asked(real.tokens.float(), real.groups)
        drawn_answers, pointers = self.reader.asked(drawn.tokens.float(), drawn.groups)
        return answers, drawn_answers + WEIGHT_OF_POINTERS * pointers


@torch.no_grad()
def see(reader: Reader, pixels: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return the tokens of pictures, one at a time: they are large."""
    return torch.cat([reader.model.encode(one[None].float(), [canvas])[1].half() for one in pixels])


def read_questions(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Return (question, answer) by name of chart, of a folder in ChartQA's layout: `png` and any number of JSON files.

    Raises: VLMError with `invalid_request` where there is none.
    """
    asked: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(data.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            asked.setdefault(row["imgname"], []).append((row["query"], str(row["label"])))
    if not asked:
        raise VLMError("invalid_request", f"{data.name} holds no questions; expected *.json and png/ as in ChartQA")
    return asked


def real_lessons(
    reader: Reader, data: Path, asked: dict[str, list[tuple[str, str]]], *, silent: bool = False
) -> Iterator[Lesson]:
    """Yield the charts of folder `data` that are asked about, those of equally many tiles together.

    Raises: VLMError with `invalid_request` where one cannot be read.
    """
    processor = ImageProcessor(reader.model.config.vision)
    seen: dict[tuple[int, int], list[tuple[Tensor, list[tuple[str, str]]]]] = {}
    for name, questions in tqdm(asked.items(), disable=silent or None, unit="picture", desc="real charts seen"):
        try:
            pixels, canvas = processor(data / "png" / name)
        except ImageError as error:
            raise VLMError("invalid_request", f"png/{name}: {error}") from None
        seen.setdefault(canvas, []).append((see(reader, pixels[None], canvas), questions))
    for pictures in seen.values():
        for start in range(0, len(pictures), PICTURES_TOGETHER):
            yield _lesson(pictures[start : start + PICTURES_TOGETHER])


def _lesson(pictures: list[tuple[Tensor, list[tuple[str, str]]]]) -> Lesson:
    """Return the lesson of pictures of equally many tiles, each with its questions and answers."""
    tokenizer, tokens = reader_tokenizer(), torch.cat([tokens for tokens, _ in pictures])
    rows = []
    for index, (_, questions) in enumerate(pictures):
        for question, answer in questions:
            ids, labels = with_labels(*conversation(tokenizer, question, answer))
            nothing = np.zeros((NUM_POINTERS, len(ids)), dtype=np.int64)
            # The class token of a tile is no place.
            places = np.zeros((1, tokens.shape[1] * (tokens.shape[2] - 1)), dtype=bool)
            rows.append((index, ids, labels, Pointers(nothing, places), "real"))
    return Lesson(tokens, question_groups(rows, tokenizer.image_marker_id))


def drawn_lessons(reader: Reader, count: int, seed: int, rank: int, num_ranks: int) -> Iterator[Lesson]:
    """Yield lessons of charts that are drawn."""
    data = ReaderData(reader.model.config.vision, reader_tokenizer(), DRAWN, num_batches=count * num_ranks, seed=seed)
    places = range(rank, count * num_ranks, num_ranks)
    for index in tqdm(places, disable=None if rank == 0 else True, unit="lesson", desc="drawn charts seen"):
        batch = data[index]
        if batch.groups:
            yield Lesson(see(reader, batch.pixels, batch.canvas), batch.groups)


@click.command()
@click.option(
    "--model", "start", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of a reader."
)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="As ChartQA's train folder.")
@click.option("--out", type=click.Path(path_type=Path), default="runs/real", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=360, show_default=True)
@click.option("--drawn", type=click.IntRange(1), default=90, show_default=True, help="Lessons of each process.")
@click.option("--rate", type=float, default=0.06, show_default=True, help="Share of the peak learning rates.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(start: Path, data: Path, out: Path, steps: int, drawn: int, rate: float, seed: int) -> None:
    """Train a reader's decoder on real charts, and write the model to OUT/model."""
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    rank, num_ranks = join_processes()
    try:
        asked, reader = read_questions(data), load_reader(start)
        if len(asked) < num_ranks:
            raise VLMError("invalid_request", f"{len(asked)} charts for {num_ranks} processes; give each one or more")
        reader.requires_grad_(False)
        reader.model.decoder.requires_grad_(True)
        real = list(real_lessons(reader, data, dict(sorted(asked.items())[rank::num_ranks]), silent=rank > 0))
    except VLMError as error:
        raise click.ClickException(str(error)) from None
    own = list(drawn_lessons(reader, drawn, seed, rank, num_ranks))
    out.mkdir(parents=True, exist_ok=True)
    order = Random(seed + rank)
    bar = tqdm(range(steps), disable=None if rank == 0 else True, unit="step", desc="learned")
    learn(reader, zip(bar, _for_ever(real, order), _for_ever(own, order), strict=False), steps, rate, out)
    if rank == 0:
        save_reader(reader, out / "model")
    if num_ranks > 1:
        torch.distributed.destroy_process_group()


def learn(
    reader: Reader, lessons: Iterable[tuple[int, Lesson, Lesson]], num_steps: int, rate: float, out: Path
) -> None:
    """Train what has gradients on (step, real lesson, drawn lesson), its rate falling to zero, and write a log."""
    optimizers = optimizers_of(reader)
    step_of: nn.Module = Asked(reader)
    several = torch.distributed.is_initialized()
    if several:
        step_of = DistributedDataParallel(step_of, find_unused_parameters=True)
    begun, recent = time.monotonic(), Counter()
    for step, real, drawn in lessons:
        share = min(1.0, (step + 1) / 20) * rate * (1 - step / num_steps)
        losses = step_of(real, drawn)
        reader.zero_grad(set_to_none=True)
        sum(losses).backward()
        nn.utils.clip_grad_norm_(reader.model.decoder.parameters(), 1.0)
        set_rates(optimizers, share)
        for optimizer in optimizers:
            optimizer.step()
        wire_pointers(reader.model)
        recent.update(answer=losses[0].item(), drawn=losses[1].item())
        if (step + 1) % LOG_EVERY == 0 and not (several and torch.distributed.get_rank()):
            row = {"stage": "real charts", "batch": step + 1, "elapsed_s": round(time.monotonic() - begun)}
            means = {name: round(total / LOG_EVERY, 4) for name, total in recent.items()}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row | means | {"exact": reader.shares_right()}) + "\n")
            recent.clear()


def _for_ever(lessons: list[Lesson], order: Random) -> Iterator[Lesson]:
    """Yield all lessons, in another order each time."""
    for _ in itertools.count():
        yield from order.sample(lessons, len(lessons))


if __name__ == "__main__":
    main()
