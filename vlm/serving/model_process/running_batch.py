"""The rows that are decoded together, which come and go between steps, and the memory of their keys and values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask, cross_mask
from vlm.batch import Batch, DecoderPrompt, JoinedImages
from vlm.generation.generate import Prefilled
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
    visible: Tensor | None = None
    """[2] int64 on the CPU: the image keys (first, end) the reply sees."""
    num_own: Tensor | None = None
    """int64 on the CPU: image keys that are the row's own."""
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


class RunningRows:
    """Rows without gaps in memory that grows by steps: a newcomer is written behind the last, the last fills a gap."""

    def __init__(self, model: VisionLanguageModel, num_slots: int):
        self.rows: list[Row] = []
        self._model, self._num_slots = model, num_slots
        self._memory: KVCache | None = None
        self._joined = JoinedImages(num_slots)
        self._is_arranged = False
        self._image: ImageKV | None = None
        self._mask: CrossMask | None = None

    def make_room(self, newcomers: list[Row]) -> None:
        """Have memory for `newcomers` too, up to their ends: no step will ask for more."""
        num_rows, capacity = len(self.rows) + len(newcomers), max(row.capacity for row in newcomers)
        if self._memory is not None:
            if num_rows <= self._memory.keys.shape[1] and capacity <= self._memory.capacity:
                return
            capacity = max(capacity, self._memory.capacity)
        capacity = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
        # Twice the rows each time: few moves, and a long reply alone takes no memory for others as long.
        num_rows = min(1 << (num_rows - 1).bit_length(), self._num_slots)
        grown = self._model.empty_cache(num_rows, capacity)
        for place, row in enumerate(self.rows):
            grown.put(place, self._memory, place, row.num_positions)
        self._memory = grown

    def join(self, rows: list[Row], batch: Batch, prefilled: Prefilled) -> None:
        """Take in `rows`, for which there is room, which were read as `batch`, and whose first tokens were chosen."""
        for place, row in enumerate(rows):
            self._memory.put(len(self.rows) + place, prefilled.cache, place, len(row.prompt.ids))
            row.visible, row.num_own = batch.visible[place, batch.lengths[place] - 1], batch.num_own[place]
        self.rows = self.rows + rows
        self._is_arranged = False

    def leave(self, gone: list[Row]) -> None:
        """Let rows go; no step works for them from now on."""
        places = {place for place, row in enumerate(self.rows) if row in gone}
        for place in places:
            if self.rows[place].is_broken:
                self._memory.clear(place)
        order = close_up(set(range(len(self.rows))) - places)
        for gap, mover in enumerate(order):
            if gap != mover:
                self._memory.put(gap, self._memory, mover, self.rows[mover].num_positions)
        self.rows = [self.rows[place] for place in order]
        self._is_arranged = self._is_arranged and not places
        if not self.rows:
            # Without rows no memory is held: the next ones may need less.
            self._memory, self._image, self._mask = None, None, None
            self._joined = JoinedImages(self._num_slots)

    def forward(self) -> Tensor:
        """Feed each row the token that was chosen last and return the hidden states [b, d] that predict the next."""
        if not self._is_arranged:
            self._arrange()
        fed = torch.tensor([[row.last_id, row.num_positions] for row in self.rows], device=self._memory.keys.device)
        lengths, num_rows = fed[:, 1], len(self.rows)
        longest = max(row.num_positions for row in self.rows)
        cache = self._memory.mapped(lambda part: part[:, :num_rows])._replace(lengths=lengths, max_length=longest)
        return self._model.decoder(fed[:, :1], cache, self._image, self._mask).hidden[:, -1]

    def _arrange(self) -> None:
        self._image = self._joined.arrange([row.prompt.images for row in self.rows])
        self._mask = None
        if self._image is not None:
            visible = torch.stack([row.visible for row in self.rows])[:, None]
            num_own = torch.stack([row.num_own for row in self.rows])
            self._mask = cross_mask(visible, num_own, self._image.keys.shape[3], self._image.keys.device)
        self._is_arranged = True
