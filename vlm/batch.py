"""Prompts of any mix as one padded batch: ids, image keys and values, and what each position sees."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask, cross_mask, seen_images
from vlm.kv_cache import move_rows

MAX_BATCH_SIZE = 8
"""Rows computed together unless a caller says otherwise."""


class PromptImage(NamedTuple):
    """An image as the decoder takes it."""

    kv: ImageKV
    """[layers, 1, g, l, e] of the real tiles, then in the transformers reference of the missing ones."""
    num_visible: int
    """Keys of the real tiles."""


class DecoderPrompt(NamedTuple):
    """One prompt as the decoder takes it."""

    ids: list[int]
    images: list[PromptImage]
    """One for each marker, in prompt order."""
    other_views: Sequence[list[PromptImage]] = ()
    """The same images in each further view."""

    @property
    def views(self) -> list[list[PromptImage]]:
        """The images in each view; a batch has a row for each."""
        return [self.images, *self.other_views]


class Batch(NamedTuple):
    """Prompts padded on the right to one length."""

    ids: Tensor
    """[b, s] int64"""
    lengths: list[int]
    """Real ids of each row."""
    image: ImageKV | None
    """[layers, b, g, l, e]; None when no row has an image."""
    visible: Tensor
    """[b, s, 2] int64 on the CPU: the image keys (first, end) each position sees."""
    num_own: Tensor
    """[b] int64 on the CPU: image keys that are the row's own."""
    prompts: list[int]
    """Which prompt each row is a view of."""

    def mask(self, start: int, end: int) -> CrossMask | None:
        """Return the masks of the cross-attention for the positions from `start` to `end`."""
        if self.image is None:
            return None
        return cross_mask(self.visible[:, start:end], self.num_own, self.image.keys.shape[3], self.ids.device)

    def reply_mask(self) -> CrossMask | None:
        """Return the masks for what is generated: it goes on seeing what the prompt's last position saw."""
        if self.image is None:
            return None
        last = torch.tensor(self.lengths)[:, None, None] - 1
        visible = self.visible.gather(1, last.expand(-1, 1, 2))
        return cross_mask(visible, self.num_own, self.image.keys.shape[3], self.ids.device)

    def kept(self, order: list[int]) -> "Batch":
        """Return the batch of the rows that go on, in `order` (see `close_up`); image keys stay in their memory."""
        image = self.image and ImageKV(*(move_rows(part, order) for part in self.image))
        lengths, prompts = ([part[place] for place in order] for part in (self.lengths, self.prompts))
        return Batch(self.ids[order], lengths, image, self.visible[order], self.num_own[order], prompts)

    def alone(self, row: int) -> "Batch":
        """Return one row as a batch, its image keys without those that pad it."""
        image = self.image and ImageKV(*(part[:, row : row + 1, :, : int(self.num_own[row])] for part in self.image))
        one = slice(row, row + 1)
        return Batch(self.ids[one], self.lengths[one], image, self.visible[one], self.num_own[one], [0])

    def repeated(self, times: int) -> "Batch":
        """Return a batch of one prompt as `times` equal ones, each row `times` times over; a single row shares its
        image keys and values."""
        image = self.image
        if image is not None:
            single = len(self.lengths) == 1
            image = ImageKV(
                *(part.expand(-1, times, -1, -1, -1) if single else part.repeat_interleave(times, 1) for part in image)
            )
        return Batch(
            self.ids.repeat_interleave(times, 0),
            [length for length in self.lengths for _ in range(times)],
            image,
            self.visible.repeat_interleave(times, 0),
            self.num_own.repeat_interleave(times),
            [*range(times)] * len(self.lengths),
        )


def build_batch(prompts: list[DecoderPrompt], marker_id: int | None, device: torch.device) -> Batch:
    """Return `prompts` as one batch on `device`; the views of a prompt are rows side by side."""
    rows = [(place, prompt.ids, images) for place, prompt in enumerate(prompts) for images in prompt.views]
    lengths = [len(ids) for _, ids, _ in rows]
    # A row is padded with its own last id: what is broken about another id cannot reach it even behind a mask.
    ids = torch.tensor([ids + ids[-1:] * (max(lengths) - len(ids)) for _, ids, _ in rows])
    visible = torch.zeros(len(rows), max(lengths), 2, dtype=torch.int64)
    for row, (_, own_ids, images) in enumerate(rows):
        visible[row, : lengths[row]] = _visible_keys(own_ids, images, marker_id)
    num_own = torch.tensor([sum(image.kv.keys.shape[3] for image in images) for *_, images in rows])
    joined = JoinedImages().arrange([images for *_, images in rows])
    return Batch(ids.to(device), lengths, joined, visible, num_own, [place for place, *_ in rows])


def mean_of_views(hidden: Tensor, prompts: list[int]) -> Tensor:
    """Return of each prompt the mean of the rows of hidden [b, ..., d] that are its views; `prompts` [b] says whose.

    The mean of hidden states has the logits that are the mean of theirs: so its probabilities are the geometric mean of
    those of the views, which is high where all of them agree.
    """
    num_prompts = len({*prompts})
    if num_prompts == len(prompts):
        return hidden
    index = torch.tensor(prompts, device=hidden.device)
    counts = index.bincount(minlength=num_prompts).view(-1, *[1] * (hidden.ndim - 1))
    total = hidden.new_zeros(num_prompts, *hidden.shape[1:], dtype=torch.float32).index_add_(0, index, hidden.float())
    return (total / counts).to(hidden.dtype)


def _visible_keys(ids: list[int], images: list[PromptImage], marker_id: int | None) -> Tensor:
    """Return the keys [s, 2] each position sees: the real tiles of all images stand first, in prompt order."""
    ends = torch.tensor([0] + [image.num_visible for image in images]).cumsum(0)
    return ends[torch.tensor(seen_images(ids, marker_id))]


class JoinedImages:
    """The image keys and values of rows that come and go, padded with zeros to one length.

    Rows that all hold the same images share one copy. Otherwise each row has its own, which is written once.
    """

    def __init__(self, num_rows: int = 0):
        """`num_rows`: make room for at least so many rows, so that more of them need no new memory."""
        self._num_rows = num_rows
        self._joined: ImageKV | None = None
        self._held: list[list[PromptImage] | None] = []

    def arrange(self, rows: list[list[PromptImage]]) -> ImageKV | None:
        """Return the keys and values [layers, b, g, l, e] of `rows`; valid until the next call."""
        # What rows that are gone held is let go.
        self._held = [
            held if place < len(rows) and held is rows[place] else None for place, held in enumerate(self._held)
        ]
        if not any(rows):
            return None
        names = [[id(image.kv.keys) for image in row] for row in rows]
        if all(name == names[0] for name in names):
            return ImageKV(*(part.expand(-1, len(rows), -1, -1, -1) for part in _in_order(rows[0])))
        longest = max(sum(image.kv.keys.shape[3] for image in row) for row in rows)
        self._make_room(next(image.kv for row in rows for image in row), len(rows), longest)
        for place, row in enumerate(rows):
            if self._held[place] is None:
                self._write(place, row)
        return ImageKV(*(part[:, : len(rows), :, :longest] for part in self._joined))

    def _make_room(self, like: ImageKV, num_rows: int, num_keys: int) -> None:
        if self._joined is not None:
            _, room_rows, _, room_keys, _ = self._joined.keys.shape
            if num_rows <= room_rows and num_keys <= room_keys:
                return
            num_rows, num_keys = max(num_rows, room_rows), max(num_keys, room_keys)
        num_rows = max(num_rows, self._num_rows)
        layers, _, heads, _, width = like.keys.shape
        # What was there is dropped first: old and new together may not fit.
        self._joined, self._held = None, [None] * num_rows
        self._joined = ImageKV(*(part.new_zeros(layers, num_rows, heads, num_keys, width) for part in like))

    def _write(self, place: int, row: list[PromptImage]) -> None:
        num_keys = 0
        if row:
            kv = _in_order(row)
            num_keys = kv.keys.shape[3]
            for joined, part in zip(self._joined, kv, strict=True):
                joined[:, place, :, :num_keys] = part[:, 0]
        for joined in self._joined:
            joined[:, place, :, num_keys:] = 0
        self._held[place] = row


def _in_order(images: list[PromptImage]) -> ImageKV:
    """Return [layers, 1, g, l, e]: the real tiles of all images, then the missing ones."""
    if len(images) == 1:
        return images[0].kv
    real = [ImageKV(*(part[:, :, :, :n] for part in kv)) for kv, n in images]
    missing = [ImageKV(*(part[:, :, :, n:] for part in kv)) for kv, n in images]
    return ImageKV(*(torch.cat(parts, dim=3) for parts in zip(*real, *missing, strict=True)))
