"""Prefill and decoding of a batch, token by token."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.batch import Batch
from vlm.errors import VLMError
from vlm.kv_cache import KVCache, empty_cache
from vlm.model import VisionLanguageModel
from vlm.sampling import Sampler

PREFILL_CHUNK = 2048


class Step(NamedTuple):
    """One token of one reply."""

    row: int
    token_id: int
    probability: float
    """Of this token at temperature 1, before any filter."""


class BadLogits(NamedTuple):
    """A row whose logits are not finite; it ends here, its neighbours go on."""

    row: int


class Prefilled(NamedTuple):
    """A batch that was read."""

    hidden: Tensor
    """[b, d]: of each row's last position."""
    cache: KVCache


def prefill(model: VisionLanguageModel, batch: Batch, capacity: int, chunk: int = PREFILL_CHUNK) -> Prefilled:
    """Read the prompts of `batch`, `chunk` positions at a time, into a cache with room for `capacity` a row."""
    device, lengths = batch.ids.device, torch.tensor(batch.lengths, device=batch.ids.device)
    weight = model.decoder.embedding.weight
    cache = empty_cache(model.config.decoder, len(lengths), capacity, dtype=weight.dtype, device=device)
    last = torch.zeros(len(lengths), weight.shape[1], dtype=weight.dtype, device=device)
    for start in range(0, batch.ids.shape[1], chunk):
        end = min(start + chunk, batch.ids.shape[1])
        num_new = (lengths - start).clamp(0, end - start)
        hidden, cache = model.decoder(batch.ids[:, start:end], cache, batch.image, batch.mask(start, end), num_new)
        ends_here = (lengths > start) & (lengths <= end)
        place = (lengths - 1 - start).clamp(0, end - start - 1)
        last = torch.where(ends_here[:, None], hidden[torch.arange(len(lengths), device=device), place], last)
    return Prefilled(last, cache)


def decode(
    model: VisionLanguageModel,
    batch: Batch,
    prefilled: Prefilled,
    samplers: list[Sampler],
    max_new_tokens: list[int],
    ended: set[int],
) -> Iterator[Step | BadLogits]:
    """Yield the tokens of every reply, a step of all rows at a time, until all rows are in `ended`.

    The caller adds a row to `ended` when its reply is over; a row also ends at its `max_new_tokens`.
    """
    hidden, cache = prefilled
    mask = batch.reply_mask()
    num_rows = len(samplers)
    for count in range(1, max(max_new_tokens) + 1):
        logits = model.decoder.logits(hidden).float()
        chosen = [0] * num_rows
        finite = logits.isfinite().all(-1).tolist()
        for row in range(num_rows):
            if row in ended:
                continue
            if not finite[row]:
                ended.add(row)
                yield BadLogits(row)
                continue
            chosen[row] = samplers[row].choose(logits[row])
            probability = float((logits[row, chosen[row]] - logits[row].logsumexp(-1)).exp())
            if count >= max_new_tokens[row]:
                ended.add(row)
            yield Step(row, chosen[row], probability)
        if len(ended) == num_rows:
            return
        ids = torch.tensor(chosen, device=logits.device)[:, None]
        output = model.decoder(ids, cache, batch.image, mask)
        hidden, cache = output.hidden[:, -1], output.cache


def not_finite() -> VLMError:
    """Return the error for logits that are no numbers."""
    return VLMError(
        "checkpoint_invalid",
        "the model gave logits that are not finite; expected numbers; the weights are damaged or overflow in this "
        "dtype: check the download, or load with dtype='float32'",
    )
