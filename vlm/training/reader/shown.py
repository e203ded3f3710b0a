"""Batches for the last stage: pictures as they are shown to the reader when it answers, one of their views each.

There the encoder is held, so that pictures need not be of one canvas, and what it is to learn need not be told.
"""

from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vision_encoder.image_input import read_image
from vision_encoder.thinning import given
from vlm.config import preset
from vlm.images.views import Shown, show
from vlm.training.reader.conversations import QuestionBatch, question_groups
from vlm.training.reader.data import MAX_TRIES, PictureLayout, ReaderData, moved
from vlm.training.reader.real_pictures import CANVAS
from vlm.training.synthetic.style import draw_shape

LONGEST_SIDES = (224, 880)
"""Of the charts, in pixels: some have room for a view that is larger, publishers' have not."""


class ShownPicture(NamedTuple):
    """A view of a picture, and questions about it."""

    view: Shown
    given: Tensor
    """[n] int64: which tokens the decoder is given, counted over all tiles."""
    groups: list[QuestionBatch]


class ShownBatch(NamedTuple):
    """Pictures of any sizes."""

    pictures: list[ShownPicture]

    @property
    def canvas(self) -> tuple[int, int]:
        """One of several tiles, as for all pictures the model has all of its own."""
        return CANVAS

    def to(self, device: torch.device) -> "ShownBatch":
        return moved(self, device)


class ShownData(ReaderData):
    """The batches of a stage for the decoder alone; see `ReaderData`."""

    def __getitem__(self, index: int) -> ShownBatch:
        rng = np.random.default_rng([self.seed, index, self.rank])
        num_pictures = self.diet.num_images // self.num_ranks
        return ShownBatch([self._shown(rng, self.difficulty(index)) for _ in range(num_pictures)])

    def _shown(self, rng: np.random.Generator, difficulty: float) -> ShownPicture:
        """Return a picture about which there are questions; there is nothing to ask about one in forty."""
        for _ in range(MAX_TRIES):
            if (shown := self._any(rng, difficulty)).groups:
                return shown
        raise RuntimeError(f"there is nothing to ask about {MAX_TRIES} pictures in a row; give a diet with questions")

    def _any(self, rng: np.random.Generator, difficulty: float) -> ShownPicture:
        longest_side = int(rng.integers(LONGEST_SIDES[0], LONGEST_SIDES[1] + 1))
        size = draw_shape(Random(int(rng.integers(2**63))), longest_side)
        layout = PictureLayout(self.of_sheets, size)
        picture = self.picture(rng, size, layout, difficulty)
        views = show(read_image(picture.image), self.of_sheets, preset("default").num_views, thinned=True)
        view = views[int(rng.integers(len(views)))]
        groups = question_groups([(0, *row) for row in picture.asked], self.tokenizer.image_marker_id)
        return ShownPicture(view, given(view.kept, len(view.levels)), groups)
