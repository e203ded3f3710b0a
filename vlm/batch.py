"""Prompts of any mix as one padded batch: ids, image keys and values, and what each position sees."""

from typing import NamedTuple

import torch
from torch import Tensor

from adapters.cross_attention import ImageKV
from adapters.masks import CrossMask, cross_mask, seen_images

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

    def repeated(self, times: int) -> "Batch":
        """Return a batch of one row as `times` equal rows, which share its image keys and values."""
        image = self.image and ImageKV(*(part.expand(-1, times, -1, -1, -1) for part in self.image))
        return Batch(
            self.ids.expand(times, -1),
            self.lengths * times,
            image,
            self.visible.expand(times, -1, -1),
            self.num_own.expand(times),
        )


def build_batch(prompts: list[DecoderPrompt], marker_id: int | None, device: torch.device) -> Batch:
    """Return `prompts` as one batch on `device`."""
    lengths = [len(prompt.ids) for prompt in prompts]
    # A row is padded with its own last id: what is broken about another id cannot reach it even behind a mask.
    ids = torch.tensor([prompt.ids + prompt.ids[-1:] * (max(lengths) - len(prompt.ids)) for prompt in prompts])
    visible = torch.zeros(len(prompts), max(lengths), 2, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        visible[row, : lengths[row]] = _visible_keys(prompt, marker_id)
    num_own = torch.tensor([sum(image.kv.keys.shape[3] for image in prompt.images) for prompt in prompts])
    return Batch(ids.to(device), lengths, _join([prompt.images for prompt in prompts]), visible, num_own)


def _visible_keys(prompt: DecoderPrompt, marker_id: int | None) -> Tensor:
    """Return the keys [s, 2] each position sees: the real tiles of all images stand first, in prompt order."""
    ends = torch.tensor([0] + [image.num_visible for image in prompt.images]).cumsum(0)
    return ends[torch.tensor(seen_images(prompt.ids, marker_id))]


def _join(rows: list[list[PromptImage]]) -> ImageKV | None:
    """Return the image keys and values of all rows [layers, b, g, l, e], padded with zeros.

    Rows that hold the same images share one copy.
    """
    if not any(rows):
        return None
    if all([id(image.kv.keys) for image in row] == [id(image.kv.keys) for image in rows[0]] for row in rows[1:]):
        return ImageKV(*(part.expand(-1, len(rows), -1, -1, -1) for part in _in_order(rows[0])))
    joined = [_in_order(row) if row else None for row in rows]
    longest = max(kv.keys.shape[3] for kv in joined if kv is not None)
    some = next(kv for kv in joined if kv is not None)
    shape = (some.keys.shape[0], len(rows), some.keys.shape[2], longest, some.keys.shape[4])
    out = ImageKV(some.keys.new_zeros(shape), some.values.new_zeros(shape))
    for row, kv in enumerate(joined):
        if kv is not None:
            out.keys[:, row, :, : kv.keys.shape[3]] = kv.keys[:, 0]
            out.values[:, row, :, : kv.values.shape[3]] = kv.values[:, 0]
    return out


def _in_order(images: list[PromptImage]) -> ImageKV:
    """Return [layers, 1, g, l, e]: the real tiles of all images, then the missing ones."""
    if len(images) == 1:
        return images[0].kv
    real = [ImageKV(*(part[:, :, :, :n] for part in kv)) for kv, n in images]
    missing = [ImageKV(*(part[:, :, :, n:] for part in kv)) for kv, n in images]
    return ImageKV(*(torch.cat(parts, dim=3) for parts in zip(*real, *missing, strict=True)))
