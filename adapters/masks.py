"""Which text position sees which images, as ranges, and the small masks the cross-attention needs.

Source: llama-models models/llama3/chat_format.py, create_vision_mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def seen_images(ids: list[int], marker_id: int) -> list[tuple[int, int]]:
    """Return for each position of `ids` the images it sees, as a range (first, end) counted in prompt order.

    A position sees the latest image, or all of a run of markers that follow each other directly. Before the first
    marker it sees none: (0, 0).
    """
    ranges, first, end = [], 0, 0
    previous_is_marker = False
    for token_id in ids:
        is_marker = token_id == marker_id
        if is_marker:
            first = first if previous_is_marker else end
            end += 1
        previous_is_marker = is_marker
        ranges.append((first, end))
    return ranges


class CrossMask(NamedTuple):
    """What a chunk of text may see of the image keys. None stands for a mask that would hide nothing."""

    keys: Tensor | None
    """[b, 1, s or 1, l] bool: keys a position may see; all of its row's where it sees no image, which `rows` hides.

    Or [b, 1, 1, l] float32, where one trains: what is added to the logits of each key.
    """
    rows: Tensor | None
    """[b, s or 1, 1] bool: positions that see any image at all."""

    @property
    def hides_nothing(self) -> bool:
        return self.keys is None and self.rows is None


def cross_mask(visible: Tensor, num_own: Tensor, num_keys: int, device: torch.device | str = "cpu") -> CrossMask:
    """Return the masks for key ranges `visible` [b, s, 2] (first, end) over `num_keys` keys.

    `num_own` [b] counts the keys that are a row's own; the others pad the batch. `visible` and `num_own` live on the
    CPU, so that deciding what is needed waits for no device. Equal ranges of all positions give one for all.
    """
    if bool((visible == visible[:, :1]).all()):
        visible = visible[:, :1]
    first, end = visible[..., 0], visible[..., 1]
    blind = end <= first
    # A position that sees nothing is pointed at its row's own keys, or anywhere: its softmax stays finite.
    own = torch.where(num_own > 0, num_own, num_keys)[:, None].expand_as(end)
    first, end = torch.where(blind, 0, first), torch.where(blind, own, end)
    rows = ~blind[..., None] if bool(blind.any()) else None
    keys = None
    if bool(((first > 0) | (end < num_keys)).any()):
        index = torch.arange(num_keys)
        keys = ((index >= first[..., None]) & (index < end[..., None]))[:, None]
    return CrossMask(*(None if mask is None else mask.to(device) for mask in (keys, rows)))
