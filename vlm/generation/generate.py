"""Prefill and decoding of a batch, token by token."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.batch import Batch, mean_of_views
from vlm.errors import VLMError
from vlm.generation.grammar import restrict
from vlm.generation.sampling import Sampler
from vlm.kv_cache import KVCache, close_up
from vlm.model import VisionLanguageModel

PREFILL_CHUNK = 2048
MAX_BYTES_IN_CACHES = 2**25
"""Of weights that are read anew for each row without taking longer for it."""


class Step(NamedTuple):
    """One token of one reply."""

    row: int
    token_id: int
    log_probability: float
    """Of this token at temperature 1, before any filter."""

    @property
    def probability(self) -> float:
        return math.exp(self.log_probability)


class BadLogits(NamedTuple):
    """A row with logits from which nothing can be chosen; it ends here, its neighbours go on."""

    row: int
    error: VLMError


class Prefilled(NamedTuple):
    """A batch that was read."""

    hidden: Tensor
    """[b, d]: of each row's last position."""
    cache: KVCache


def prefill(model: VisionLanguageModel, batch: Batch, capacity: int, chunk: int = PREFILL_CHUNK) -> Prefilled:
    """Read the prompts of `batch`, `chunk` positions at a time, into a cache with room for `capacity` a row."""
    *_, whole = prefill_in_chunks(model, batch, capacity, chunk)
    return whole


def prefill_in_chunks(model: VisionLanguageModel, batch: Batch, capacity: int, chunk: int) -> Iterator[Prefilled]:
    """Yield after each `chunk` of positions what was read so far; whole with the last."""
    device, lengths = batch.ids.device, torch.tensor(batch.lengths, device=batch.ids.device)
    weight = model.decoder.embedding.weight
    cache = model.empty_cache(len(lengths), capacity)
    last = torch.zeros(len(lengths), weight.shape[1], dtype=weight.dtype, device=device)
    for start in range(0, batch.ids.shape[1], chunk):
        end = min(start + chunk, batch.ids.shape[1])
        num_new = (lengths - start).clamp(0, end - start)
        hidden, cache = model.decoder(batch.ids[:, start:end], cache, batch.image, batch.mask(start, end), num_new)
        ends_here = (lengths > start) & (lengths <= end)
        place = (lengths - 1 - start).clamp(0, end - start - 1)
        last = torch.where(ends_here[:, None], hidden[torch.arange(len(lengths), device=device), place], last)
        yield Prefilled(last, cache)


def decode(
    model: VisionLanguageModel,
    batch: Batch,
    prefilled: Prefilled,
    samplers: list[Sampler],
    max_new_tokens: list[int],
    ended: set[int],
) -> Iterator[Step | BadLogits]:
    """Yield the tokens of every reply, a step of all rows at a time, until all rows are in `ended`.

    The caller adds a row to `ended` when its reply is over; a row also ends at its `max_new_tokens`. Rows that have
    ended are computed no more: `batch` and `prefilled` are used up. A row here is a prompt with all its views.
    """
    if len(batch.prompts) > len(samplers) == 1 and rows_go_alone(model):
        yield from _decode_view_by_view(model, batch, prefilled, samplers[0], max_new_tokens[0], ended)
        return
    hidden, cache = prefilled
    mask = batch.reply_mask()
    rows, prompts = list(range(len(samplers))), batch.prompts
    for count in range(1, max(max_new_tokens) + 1):
        logits = model.decoder.logits(mean_of_views(hidden, prompts)).float()
        chosen = {}
        for step in choose(logits, {place: samplers[row] for place, row in enumerate(rows)}):
            place, row = step.row, rows[step.row]
            if isinstance(step, Step):
                chosen[place] = step.token_id
            if isinstance(step, BadLogits) or count >= max_new_tokens[row]:
                ended.add(row)
            yield step._replace(row=row)
        going_on = {place for place, row in enumerate(rows) if row not in ended}
        if not going_on:
            return
        order = close_up({view for view, place in enumerate(prompts) if place in going_on})
        if len(order) < len(prompts):
            cache, batch = cache.kept(order), batch.kept(order)
            mask = batch.reply_mask()
            staying = close_up(going_on)
            rows, prompts = [rows[place] for place in staying], [staying.index(prompts[view]) for view in order]
            chosen = {place: chosen[before] for place, before in enumerate(staying)}
        ids = torch.tensor([chosen[place] for place in prompts], device=logits.device)[:, None]
        output = model.decoder(ids, cache, batch.image, mask)
        hidden, cache = output.hidden[:, -1], output.cache


def rows_go_alone(model: VisionLanguageModel) -> bool:
    """Return whether a row alone is decoded soonest: on a CPU, where a row alone takes one call, and the weights stay
    in its caches and need not be read again for each.
    """
    if model.decoder.embedding.weight.device.type != "cpu":
        return False
    return sum(parameter.nbytes for parameter in model.decoder.parameters()) <= MAX_BYTES_IN_CACHES


def _decode_view_by_view(
    model: VisionLanguageModel,
    batch: Batch,
    prefilled: Prefilled,
    sampler: Sampler,
    max_new_tokens: int,
    ended: set[int],
) -> Iterator[Step | BadLogits]:
    """Yield the tokens of the one reply of `batch`, as `decode` does."""
    hidden = prefilled.hidden
    views = [batch.alone(row) for row in range(len(batch.prompts))]
    caches = [prefilled.cache.alone(row) for row in range(len(views))]
    masks = [view.reply_mask() for view in views]
    for count in range(1, max_new_tokens + 1):
        [step] = choose(model.decoder.logits(mean_of_views(hidden, batch.prompts)).float(), {0: sampler})
        if isinstance(step, BadLogits) or count == max_new_tokens:
            ended.add(0)
        yield step
        if 0 in ended:
            return
        ids = torch.tensor([[step.token_id]])
        outputs = [
            model.decoder(ids, cache, view.image, mask) for cache, view, mask in zip(caches, views, masks, strict=True)
        ]
        hidden, caches = torch.cat([output.hidden[:, -1] for output in outputs]), [output.cache for output in outputs]


def choose(logits: Tensor, samplers: Mapping[int, Sampler]) -> list[Step | BadLogits]:
    """Return the next token of each row of `logits` [b, n] in float32 that has a sampler."""
    # All that needs no sampler is asked of the device at once, not row by row.
    finite = logits.isfinite().all(-1).tolist()
    constraints = {row: sampler.constraint for row, sampler in samplers.items() if sampler.constraint is not None}
    left, stuck = restrict(logits, constraints)
    likeliest = left.argmax(-1).tolist()
    chosen: dict[int, int | VLMError] = {}
    for row, sampler in samplers.items():
        if not finite[row] or row in stuck:
            chosen[row] = stuck[row] if finite[row] else not_finite()
            continue
        chosen[row] = likeliest[row] if sampler.takes_likeliest else sampler.choose(left[row])
        if sampler.constraint is not None:
            sampler.constraint.advance(chosen[row])
    rows = torch.tensor(list(chosen), device=logits.device)
    ids = torch.tensor([0 if isinstance(found, VLMError) else found for found in chosen.values()], device=logits.device)
    log_probabilities = (logits[rows, ids] - logits.logsumexp(-1)[rows]).tolist()
    return [
        BadLogits(row, found) if isinstance(found, VLMError) else Step(row, found, log_probability)
        for (row, found), log_probability in zip(chosen.items(), log_probabilities, strict=True)
    ]


def not_finite() -> VLMError:
    """Return the error for logits that are no numbers."""
    return VLMError(
        "checkpoint_invalid",
        "the model gave logits that are not finite; expected numbers; the weights are damaged or overflow in this "
        "dtype: check the download, or load with dtype='float32'",
    )
