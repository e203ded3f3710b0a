"""Texts side by side in one row, so that no time goes into padding; none of them sees another."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.batch import Batch, DecoderPrompt, build_batch
from vlm.decoder import Packing, TextDecoder


def packed_states(
    decoder: TextDecoder, prompts: Sequence[DecoderPrompt], marker_id: int | None, max_length: int
) -> Tensor:
    """Return the states [b, s, d] of the texts as if each stood in a row of its own, padded on the right.

    Rows are as long as `max_length` tokens, or as one text where that is longer.
    """
    device = decoder.embedding.weight.device
    bins = fit([len(prompt.ids) for prompt in prompts], max_length)
    batch = _joined([[prompts[place] for place in own] for own in bins], marker_id, device)
    places, owners = _places([[len(prompts[place].ids) for place in own] for own in bins], batch.ids.shape[1])
    position = torch.arange(batch.ids.shape[1])
    # What pads a row is a text of its own.
    seen = (owners[:, :, None] == owners[:, None]) & (position[:, None] >= position)
    packing = Packing(places.to(device), seen[:, None].to(device))
    mask = batch.mask(0, batch.ids.shape[1])
    hidden = decoder(batch.ids, None, batch.image, mask, packing=packing).hidden
    states: list[Tensor] = [hidden] * len(prompts)
    for row, own in enumerate(bins):
        start = 0
        for place in own:
            end = start + len(prompts[place].ids)
            states[place], start = hidden[row, start:end], end
    return pad_sequence(states, batch_first=True)


def fit(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Return which texts share a row: the longest first, each into the first row with room for it."""
    bins: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        row = next((row for row, left in enumerate(room) if left >= lengths[place]), None)
        if row is None:
            bins.append([])
            room.append(max_length)
            row = -1
        bins[row].append(place)
        room[row] -= lengths[place]
    return bins


def _joined(bins: list[list[DecoderPrompt]], marker_id: int | None, device: torch.device) -> Batch:
    """Return a batch with a row for each bin, in which each text sees its own images."""
    rows = [
        DecoderPrompt(
            [token_id for prompt in own for token_id in prompt.ids],
            [image for prompt in own for image in prompt.images],
        )
        for own in bins
    ]
    batch = build_batch(rows, marker_id, device)
    visible = torch.zeros_like(batch.visible)
    for row, own in enumerate(bins):
        start = first_key = 0
        for prompt in own:
            end = start + len(prompt.ids)
            visible[row, start:end] = first_key + build_batch([prompt], marker_id, torch.device("cpu")).visible[0]
            start, first_key = end, first_key + sum(image.num_visible for image in prompt.images)
    return batch._replace(visible=visible)


def _places(lengths: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    """Return the position of each token in its text, and the number of its text in the row, [b, s] each."""
    places, owners = [], []
    for own in lengths:
        own = [*own, width - sum(own)]
        places.append(torch.cat([torch.arange(length) for length in own]))
        owners.append(torch.repeat_interleave(torch.arange(len(own)), torch.tensor(own)))
    return torch.stack(places), torch.stack(owners)
