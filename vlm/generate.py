"""Prefill and decoding of a batch, token by token."""

import time
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


def reply_log_probabilities(
    model: VisionLanguageModel, batch: Batch, replies: list[list[int]], chunk: int = PREFILL_CHUNK
) -> list[float]:
    """Return the log-probability of each of `replies` (ids, none empty) after the one prompt of `batch`."""
    longest = max(len(ids) for ids in replies)
    hidden, cache = prefill(model, batch, batch.lengths[0] + longest, chunk)
    many = batch._replace(image=_expanded(batch, len(replies)), num_own=batch.num_own.expand(len(replies)))
    ids = torch.zeros(len(replies), longest, dtype=torch.int64)
    for row, reply in enumerate(replies):
        ids[row, : len(reply)] = torch.tensor(reply)
    ids = ids.to(batch.ids.device)
    mask = many._replace(
        visible=batch.visible.expand(len(replies), -1, -1), lengths=batch.lengths * len(replies)
    ).reply_mask()
    rest = model.decoder(ids[:, :-1], cache.repeated(len(replies)), many.image, mask).hidden if longest > 1 else None
    first = hidden[:, None].expand(len(replies), -1, -1)
    hidden = first if rest is None else torch.cat([first, rest], dim=1)
    chosen = model.decoder.logits(hidden).float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    totals = [float(chosen[row, : len(reply)].sum()) for row, reply in enumerate(replies)]
    if not all(total == total for total in totals):
        raise not_finite()
    return totals


def not_finite() -> VLMError:
    """Return the error for logits that are no numbers."""
    return VLMError(
        "checkpoint_invalid",
        "the model gave logits that are not finite; expected numbers; the weights are damaged or overflow in this "
        "dtype: check the download, or load with dtype='float32'",
    )


def _expanded(batch: Batch, times: int):
    """Return the image keys and values of a batch of one row for `times` rows, without copying."""
    if batch.image is None:
        return None
    return type(batch.image)(*(part.expand(-1, times, -1, -1, -1) for part in batch.image))


class Clock:
    """Seconds since it was last read."""

    def __init__(self, device: torch.device):
        self._device = device
        self._since = time.perf_counter()

    def lap(self) -> float:
        if self._device.type == "cuda":
            # Work on the device is only queued when a call returns.
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        return elapsed
