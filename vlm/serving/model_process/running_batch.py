"""The rows that are decoded together, which come and go between steps, and the memory of their keys and values."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask, cross_mask
from vlm.batch import Batch, DecoderPrompt, JoinedImages, PromptImage, mean_of_views
from vlm.generation.generate import Prefilled, rows_go_alone
from vlm.generation.reply import ReplyText
from vlm.generation.sampling import Sampler
from vlm.kv_cache import CAPACITY_STEP, KVCache, close_up
from vlm.model import VisionLanguageModel


@dataclass(eq=False, kw_only=True)
class Row:
    """One reply on its way."""

    key: int
    """The job's."""
    prompt: DecoderPrompt
    room: int
    """Most tokens of the reply."""
    sampler: Sampler
    text: ReplyText
    top_logprobs: int | None = None
    encode_s: float = 0.0
    prefill_s: float = 0.0
    since: float = 0.0
    """When its prompt began to be read, then when its first token came."""
    num_chosen: int = 0
    """Tokens chosen, those included that are no text."""
    last_id: int = 0
    """The token chosen last, which the decoder was not fed yet."""
    is_broken: bool = False
    """Whether its numbers are none any more."""

    @property
    def num_positions(self) -> int:
        """Positions the decoder has been fed."""
        return len(self.prompt.ids) + self.num_chosen - 1

    @property
    def capacity(self) -> int:
        """Most positions it will ever have."""
        return len(self.prompt.ids) + self.room

    @property
    def is_over(self) -> bool:
        return self.is_broken or self.text.finished or self.num_chosen >= self.room


class View(NamedTuple):
    """A view of a reply's images: a row of the memory and of each step."""

    row: Row
    images: list[PromptImage]
    visible: Tensor
    """[2] int64 on the CPU: the image keys (first, end) the reply sees."""
    num_own: Tensor
    """int64 on the CPU: image keys that are the view's own."""


class RunningRows:
    """Rows without gaps in memory that grows by steps: a newcomer is written behind the last, the last fills a gap.

    A reply has a row of the memory for each view of its images.
    """

    def __init__(self, model: VisionLanguageModel, num_slots: int):
        self.rows: list[Row] = []
        self._views: list[View] = []
        self._model, self._num_slots = model, num_slots * model.config.num_views
        self._memory: KVCache | None = None
        self._joined = JoinedImages(self._num_slots)
        self._is_arranged = False
        self._parts: list[tuple[slice, ImageKV | None, CrossMask | None]] = []
        """Which views are computed together, and what they see."""

    def make_room(self, newcomers: list[Row]) -> None:
        """Have memory for `newcomers` too, up to their ends: no step will ask for more."""
        num_rows = len(self._views) + sum(len(row.prompt.views) for row in newcomers)
        capacity = max(row.capacity for row in newcomers)
        if self._memory is not None:
            if num_rows <= self._memory.keys.shape[1] and capacity <= self._memory.capacity:
                return
            capacity = max(capacity, self._memory.capacity)
        capacity = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
        # Twice the rows each time: few moves, and a long reply alone takes no memory for others as long.
        num_rows = min(1 << (num_rows - 1).bit_length(), self._num_slots)
        grown = self._model.empty_cache(num_rows, capacity)
        for place, view in enumerate(self._views):
            grown.put(place, self._memory, place, view.row.num_positions)
        self._memory = grown

    def join(self, rows: list[Row], batch: Batch, prefilled: Prefilled) -> None:
        """Take in `rows`, for which there is room, which were read as `batch`, and whose first tokens were chosen."""
        views = [(row, images) for row in rows for images in row.prompt.views]
        for place, (row, images) in enumerate(views):
            self._memory.put(len(self._views), prefilled.cache, place, len(row.prompt.ids))
            visible = batch.visible[place, batch.lengths[place] - 1]
            self._views.append(View(row, images, visible, batch.num_own[place]))
        self.rows = self.rows + rows
        self._is_arranged = False

    def leave(self, gone: list[Row]) -> None:
        """Let rows go; no step works for them from now on."""
        places = {place for place, view in enumerate(self._views) if view.row in gone}
        for place in places:
            if self._views[place].row.is_broken:
                self._memory.clear(place)
        order = close_up(set(range(len(self._views))) - places)
        for gap, mover in enumerate(order):
            if gap != mover:
                self._memory.put(gap, self._memory, mover, self._views[mover].row.num_positions)
        self._views = [self._views[place] for place in order]
        self.rows = list(dict.fromkeys(view.row for view in self._views))
        self._is_arranged = self._is_arranged and not places
        if not self.rows:
            # Without rows no memory is held: the next ones may need less.
            self._memory, self._parts = None, []
            self._joined = JoinedImages(self._num_slots)

    def forward(self) -> Tensor:
        """Feed each row the token that was chosen last and return the hidden states [b, d] that predict the next."""
        if not self._is_arranged:
            self._arrange()
        hidden = torch.cat([self._feed(*part) for part in self._parts])
        return mean_of_views(hidden, [self.rows.index(view.row) for view in self._views])

    def _feed(self, part: slice, image: ImageKV | None, mask: CrossMask | None) -> Tensor:
        """Return the hidden states [n, d] of the `part` of the views that is computed together."""
        rows = [view.row for view in self._views[part]]
        fed = torch.tensor([[row.last_id, row.num_positions] for row in rows], device=self._memory.keys.device)
        longest = max(row.num_positions for row in rows)
        cache = self._memory.mapped(lambda memory: memory[:, part])._replace(lengths=fed[:, 1], max_length=longest)
        return self._model.decoder(fed[:, :1], cache, image, mask).hidden[:, -1]

    def _arrange(self) -> None:
        """Choose what is computed together, and put side by side what it sees of the images."""
        if rows_go_alone(self._model):
            places = [slice(place, place + 1) for place in range(len(self._views))]
            self._parts = [(place, *self._seen(self._views[place], JoinedImages())) for place in places]
        else:
            self._parts = [(slice(len(self._views)), *self._seen(self._views, self._joined))]
        self._is_arranged = True

    @staticmethod
    def _seen(views: list[View], joined: JoinedImages) -> tuple[ImageKV | None, CrossMask | None]:
        image = joined.arrange([view.images for view in views])
        if image is None:
            return None, None
        visible = torch.stack([view.visible for view in views])[:, None]
        num_own = torch.stack([view.num_own for view in views])
        return image, cross_mask(visible, num_own, image.keys.shape[3], image.keys.device)
