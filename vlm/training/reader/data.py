"""Batches for the reader: drawn pages, charts and diagrams, questions about them, and what makes it read.

A batch is a function of (seed, index, rank) and of the real pictures given, so that a run can go on where it stopped.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from vision_encoder.config import VisionConfig
from vision_encoder.image_input import read_image
from vision_encoder.preprocess import ImageProcessor
from vision_encoder.thinning import Kept
from vlm.tokenizer import Tokenizer
from vlm.training.reader.conversations import QuestionBatch, conversation, question_groups, with_labels
from vlm.training.reader.diet import Diet
from vlm.training.reader.real_charts import RealCharts
from vlm.training.reader.real_pictures import CANVAS
from vlm.training.reader.real_print import RealPrint, print_targets
from vlm.training.reader.targets import (
    IGNORED,
    NUM_POINTERS,
    PatchLinks,
    Pointers,
    character_codes,
    no_links,
    patch_links,
    pointer_targets,
)
from vlm.training.reader.thinning import keep
from vlm.training.synthetic.charts import Character, Chart, Question, ask, ask_how_many, draw_chart, patch_characters
from vlm.training.synthetic.diagrams import Diagram, draw_diagram
from vlm.training.synthetic.no_charts import ask_in_vain, draw_no_chart
from vlm.training.synthetic.stretch import stretched
from vlm.training.synthetic.style import draw_shape
from vlm.training.synthetic.text_pages import draw_page

logger = logging.getLogger(__name__)

MAX_TRIES = 5
"""Pictures that cannot be made in a row; more are no accident."""
MAX_GRID = 68
"""Rows and columns of patches on a canvas that a single tile is pretended to lie on."""
NARROWEST = 0.6
"""Width by height of a chart that is drawn to be stretched."""
NUM_SLOTS = 2
"""Characters told of a patch: a patch of 8 pixels holds the middle of one, seldom of two."""


class ReaderBatch(NamedTuple):
    """Pictures, what is printed in each of their patches, and questions in groups of similar length."""

    pixels: Tensor
    """[m, t, c, height, width] uint8: levels, to be normalised where they are used, as they are a quarter as large."""
    canvas: tuple[int, int]
    """(rows, cols) of tiles, the same for all pictures; patches are counted tile by tile."""
    offset: tuple[int, int]
    """Where on a larger picture a single tile is pretended to lie, (rows, cols) in patches."""
    characters: Tensor
    """[m, p, NUM_SLOTS] int64: classes, 0 where there is none, IGNORED where that is not known."""
    links: PatchLinks
    """Each int16 [m, p], but for the last."""
    groups: list[QuestionBatch]
    kept: Kept | None = None
    """Which patches the encoder goes through, where not through all; what is told of patches is told of these."""

    def to(self, device: torch.device) -> "ReaderBatch":
        return moved(self, device)


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
        real: RealCharts | None = None,
        printed: RealPrint | None = None,
    ):
        self.config, self.tokenizer, self.diet, self.real, self.printed = config, tokenizer, diet, real, printed
        self.of_a_tile, self.of_sheets = ImageProcessor(replace(config, max_tiles=1)), ImageProcessor(config)
        self.num_batches, self.seed, self.rank, self.num_ranks = num_batches, seed, rank, num_ranks

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> ReaderBatch:
        shared = np.random.default_rng([self.seed, index])
        offset = tuple(int(patches) for patches in shared.integers(0, MAX_GRID - self.config.grid + 1, 2))
        is_sheet = shared.random() < self.diet.share_sheets
        sheet = _sheet(shared, self.config.tile_size, self._shrink(shared)) if is_sheet else None
        processor = self.of_sheets if sheet else self.of_a_tile
        rng = np.random.default_rng([self.seed, index, self.rank])
        pixels, pictures, rows = [], [], []
        for image_index in range(self.diet.num_images // self.num_ranks // (2 if is_sheet else 1)):
            size = sheet or round(self.config.tile_size * self._shrink(rng))
            layout = PictureLayout(processor, size)
            picture = self.picture(rng, size, layout, self.difficulty(index))
            pixels.append(processor.levels(read_image(picture.image)).levels)
            pictures.append(picture)
            rows += [(image_index, *row) for row in picture.asked]
        links = zip(*(picture.links for picture in pictures), strict=True)
        batch = ReaderBatch(
            torch.stack(pixels),
            layout.canvas,
            offset,
            torch.stack([torch.from_numpy(picture.characters) for picture in pictures]),
            PatchLinks(*(torch.from_numpy(np.stack(part)[:, layout.order]) for part in links)),
            question_groups(rows, self.tokenizer.image_marker_id),
        )
        if not self.diet.is_thinned:
            return batch
        return thinned(batch, keep(batch.pixels, batch.canvas, self.config.patch_size, rng))

    def difficulty(self, index: int) -> float:
        """Return that of the charts of a batch."""
        first, last = self.diet.difficulty
        return first + (last - first) * min(1.0, index / self.num_batches)

    def picture(
        self, rng: np.random.Generator, size: int | tuple[int, int], layout: "PictureLayout", difficulty: float
    ) -> "TaughtPicture":
        """Return a picture of the diet, another one where it cannot be made: one in many thousands of drawings fails,
        and hours of training must not end with it."""
        for _ in range(MAX_TRIES):
            try:
                if self.real and layout.canvas == CANVAS and rng.random() < self.diet.share_real:
                    return self._real(rng, layout)
                if self.printed and layout.canvas == CANVAS and rng.random() < self.diet.share_real_print:
                    return self._real_print(rng, layout)
                return self._drawn(rng, size, layout, difficulty)
            except Exception:
                logger.warning("a picture that could not be made was left out", exc_info=True)
        raise RuntimeError(f"{MAX_TRIES} pictures in a row could not be made")

    def _drawn(
        self, rng: np.random.Generator, size: int | tuple[int, int], layout: "PictureLayout", difficulty: float
    ) -> "TaughtPicture":
        """Return a page of print, or a chart, a diagram or something else with questions about it."""
        pages, diagrams = self.diet.share_pages, self.diet.share_diagrams
        draw = rng.random()
        if draw < pages:
            image, printed = draw_page(rng, size)
            return TaughtPicture(image, self._characters(printed, layout), no_links(layout.grid), [])
        if draw < pages + diagrams:
            return self._diagram(rng, size, layout)
        if draw < pages + diagrams + self.diet.share_no_charts:
            return self._no_chart(rng, size, layout)
        chart = self._chart(rng, size, difficulty)
        return TaughtPicture(
            chart.image,
            self._characters(chart.characters, layout),
            patch_links(chart, layout.patch_size, layout.grid),
            self._conversations(chart, self._ask(rng, chart), layout),
        )

    def _chart(self, rng: np.random.Generator, size: int | tuple[int, int], difficulty: float) -> Chart:
        several = rng.random() < self.diet.share_several_series
        # Nothing is drawn for a share of none, nor for no stretch, so that older stages are fed what they were.
        wide = self.diet.share_wide_charts > 0 and rng.random() < self.diet.share_wide_charts
        strange = self.diet.share_strange_words > 0 and rng.random() < self.diet.share_strange_words
        strangeness = float(rng.uniform(0.3, 1)) if strange else 0.0
        drawing = partial(draw_chart, difficulty=difficulty, several_series=several, wide=wide, strangeness=strangeness)
        enlarge = stretch = 1.0
        if self.diet.max_enlarge > 1 and rng.random() < 0.5:
            enlarge = float(rng.uniform(1, self.diet.max_enlarge))
        if self.diet.max_stretch > 1 and rng.random() >= 0.5:
            stretch = math.exp(rng.uniform(-1, 1) * math.log(self.diet.max_stretch))
        if enlarge == stretch == 1:
            return drawing(rng, size)
        height, width = draw_shape(Random(int(rng.integers(2**63))), size) if isinstance(size, int) else size
        # Hardly a chart fits on a narrower sheet.
        drawn_width = max(width / stretch, min(width, NARROWEST * height))
        return stretched(drawing(rng, (round(height / enlarge), round(drawn_width / enlarge))), (height, width))

    def _ask(self, rng: np.random.Generator, chart: Chart) -> Sequence[Question]:
        diet = self.diet
        if not diet.num_questions:
            return ()
        wide = diet.share_wide_questions > 0 and rng.random() < diet.share_wide_questions
        asked = ask(rng, chart, diet.num_questions, wide=wide, share_declined=diet.share_declined)
        if diet.share_counted > 0 and rng.random() < diet.share_counted:
            asked += ask_how_many(rng, chart)
        return asked

    def _diagram(
        self, rng: np.random.Generator, size: int | tuple[int, int], layout: "PictureLayout"
    ) -> "TaughtPicture":
        """Return a diagram: it has print to read and to point at, but no values that belong to labels."""
        diagram = draw_diagram(rng, size, num_questions=self.diet.num_questions)
        characters = self._characters(diagram.characters, layout)
        asked = self._conversations(diagram, diagram.questions, layout)
        return TaughtPicture(diagram.image, characters, no_links(layout.grid), asked)

    def _no_chart(
        self, rng: np.random.Generator, size: int | tuple[int, int], layout: "PictureLayout"
    ) -> "TaughtPicture":
        """Return a picture that is no chart, asked about as if it were one: nothing is to be found or copied."""
        picture = draw_no_chart(rng, size)
        questions = ask_in_vain(rng, picture, self.diet.num_questions) if self.diet.num_questions else ()
        asked = [(*self._without_pointers(each.question, each.answer, layout), each.kind) for each in questions]
        characters = self._characters(picture.characters, layout)
        return TaughtPicture(picture.image, characters, no_links(layout.grid), asked)

    def _real(self, rng: np.random.Generator, layout: "PictureLayout") -> "TaughtPicture":
        """Return a real chart: what is printed where is not known, nor where its answers stand."""
        image, questions = self.real.choose(rng)
        asked = [(*self._without_pointers(question, answer, layout), "real") for question, answer in questions]
        return TaughtPicture(image, np.full((len(layout.order), NUM_SLOTS), IGNORED), no_links(layout.grid), asked)

    def _real_print(self, rng: np.random.Generator, layout: "PictureLayout") -> "TaughtPicture":
        """Return a real chart of which is known what is printed where, but not what belongs to what."""
        picture = self.printed.choose(rng)
        patch_size = _drawn_patch(self.of_sheets, (picture.image.height, picture.image.width))
        characters = print_targets(picture, patch_size, layout.grid, NUM_SLOTS)[layout.order]
        return TaughtPicture(picture.image, characters, no_links(layout.grid), [])

    def _shrink(self, rng: np.random.Generator) -> float:
        """Return how much larger than it is seen a picture is drawn."""
        return float(rng.uniform(1, self.diet.max_shrink)) if rng.random() < 0.5 else 1.0

    def _characters(self, printed: Sequence[Character], layout: "PictureLayout") -> np.ndarray:
        codes = patch_characters(printed, layout.patch_size, layout.grid, NUM_SLOTS)
        return character_codes(codes.reshape(-1, NUM_SLOTS))[layout.order]

    def _without_pointers(
        self, question: str, answer: str, layout: "PictureLayout"
    ) -> tuple[list[int], list[int], Pointers]:
        """Return the ids of the whole conversation, the labels of each position, and pointers that point nowhere."""
        ids, labels = with_labels(*conversation(self.tokenizer, question, answer))
        nowhere = np.zeros((1, len(layout.order)), dtype=bool)
        return ids, labels, Pointers(np.zeros((NUM_POINTERS, len(ids)), dtype=np.int64), nowhere)

    def _conversations(
        self, picture: Chart | Diagram, questions: Sequence[Question], layout: "PictureLayout"
    ) -> list[tuple[list[int], list[int], Pointers, str]]:
        """Return ids, labels, pointers and kind of each question."""
        return [(*self._conversation(picture, question, layout), question.kind) for question in questions]

    def _conversation(
        self, chart: Chart | Diagram, question: Question, layout: "PictureLayout"
    ) -> tuple[list[int], list[int], Pointers]:
        """Return the ids of the whole conversation, the labels of each position, and the pointers."""
        prompt, reply = conversation(self.tokenizer, question.question, question.answer)
        pointers = pointer_targets(self.tokenizer, chart, question, prompt, reply, layout.patch_size, layout.grid)
        pointers = pointers._replace(places=pointers.places[:, layout.order])
        return *with_labels(prompt, reply), pointers


class TaughtPicture(NamedTuple):
    """One picture of a batch, and what is to be learned from it."""

    image: object
    """Anything `read_image` takes."""
    characters: np.ndarray
    """[p, NUM_SLOTS] int64: classes, tile by tile; IGNORED where it is not known."""
    links: PatchLinks
    """Along the rows of the canvas."""
    asked: list[tuple]
    """(ids, labels, pointers, kind) of each question."""


class PictureLayout:
    """The patches of a canvas: `grid` (rows, cols), for each patch, tile by tile, its number along the rows, and its
    side in pixels of the picture as it is drawn."""

    def __init__(self, processor: ImageProcessor, size: int | tuple[int, int]):
        """`size`: that at which the picture is drawn, of a picture of any shape its longest side."""
        config = processor.config
        self.patch_size = _drawn_patch(processor, size)
        self.canvas = canvas = processor.placement((size, size) if isinstance(size, int) else size)[0]
        self.grid = (canvas[0] * config.grid, canvas[1] * config.grid)
        along_rows = np.arange(self.grid[0] * self.grid[1]).reshape(self.grid)
        self.order = rearrange(along_rows, "(rows y) (cols x) -> (rows cols y x)", rows=canvas[0], cols=canvas[1])


def _drawn_patch(processor: ImageProcessor, size: int | tuple[int, int]) -> float:
    """Return the side of a patch in pixels of a picture drawn at `size`, before it is shrunk."""
    height, width = (size, size) if isinstance(size, int) else size
    fitted = processor.placement((height, width))[1]
    return processor.config.patch_size * max(height, width) / max(fitted)


def _sheet(rng: np.random.Generator, tile_size: int, shrink: float) -> tuple[int, int]:
    """Return the (height, width) of a picture seen on up to two by two tiles: often that of statistics publishers."""
    if rng.random() < 0.4:
        return round(2 * tile_size * shrink * 557 / 800), round(2 * tile_size * shrink)
    random = Random(int(rng.integers(2**63)))
    return draw_shape(random, round(random.randint(tile_size, 2 * tile_size) * shrink))


def thinned(batch: ReaderBatch, kept: Kept) -> ReaderBatch:
    """Return `batch` of the patches that are kept alone."""
    return batch._replace(
        characters=_of_kept(batch.characters, kept.patches),
        links=PatchLinks(*(_of_kept(part, kept.patches) for part in batch.links)),
        groups=[_of_kept_places(group, kept.patches) for group in batch.groups],
        kept=kept,
    )


def _of_kept(x: Tensor, patches: Tensor) -> Tensor:
    """Return of x [m, p, ...] the `patches` [m, n], [m, n, ...]."""
    return x[torch.arange(len(x))[:, None], patches]


def _of_kept_places(group: QuestionBatch, patches: Tensor) -> QuestionBatch:
    """Return `group` with places of the `patches` [m, n] of their picture alone."""
    image_index = torch.zeros(len(group.places), dtype=torch.int64)
    image_index[group.pointers] = group.image_index[:, None, None].expand_as(group.pointers)
    return group._replace(places=_of_kept(group.places, patches[image_index]))


def moved(part: object, device: torch.device) -> object:
    """Return `part` with every tensor in it on `device`."""
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=True)
    if isinstance(part, list):
        return [moved(each, device) for each in part]
    return type(part)(*(moved(each, device) for each in part)) if hasattr(part, "_fields") else part
