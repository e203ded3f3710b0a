"""How likely given replies are, read after one prefill of their prompt."""

import math

import torch
from torch import Tensor

from vlm.batch import MAX_BATCH_SIZE, Batch, mean_of_views
from vlm.generation.generate import not_finite, prefill
from vlm.kv_cache import KVCache
from vlm.model import VisionLanguageModel

LOGITS_CHUNK = 256


def reply_log_probabilities(model: VisionLanguageModel, batch: Batch, replies: list[list[int]]) -> list[float]:
    """Return the log-probability of each of `replies` (ids, none empty) after the one prompt of `batch`."""
    hidden, cache = prefill(model, batch, batch.lengths[0] + max(len(ids) for ids in replies))
    totals = []
    for start in range(0, len(replies), MAX_BATCH_SIZE):
        some = replies[start : start + MAX_BATCH_SIZE]
        states = _states(model, batch, hidden, cache, some)
        totals += [_total(model, states[row, : len(ids)], ids) for row, ids in enumerate(some)]
    if not all(map(math.isfinite, totals)):
        raise not_finite()
    return totals


def _states(
    model: VisionLanguageModel, batch: Batch, hidden: Tensor, cache: KVCache, replies: list[list[int]]
) -> Tensor:
    """Return the hidden states [b, s, d] that predict the ids of each reply; what lies past its end means nothing."""
    longest = max(len(ids) for ids in replies)
    ids = torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in replies], device=hidden.device)
    # The first token is predicted by the prompt's last position, the others by the token before them.
    first = mean_of_views(hidden, batch.prompts)[:, None].expand(len(replies), -1, -1)
    if longest == 1:
        return first
    many = batch.repeated(len(replies))
    fed = ids[many.prompts, :-1]
    rest = model.decoder(fed, cache.repeated(len(replies)), many.image, many.reply_mask())
    return torch.cat([first, mean_of_views(rest.hidden, many.prompts)], dim=1)


def _total(model: VisionLanguageModel, states: Tensor, ids: list[int]) -> float:
    """Return the sum of the log-probabilities of `ids`, each predicted by its row of `states` [s, d]."""
    total = 0.0
    # In parts: the logits of a long reply over a large vocabulary would take gigabytes.
    for start in range(0, len(ids), LOGITS_CHUNK):
        logits = model.decoder.logits(states[start : start + LOGITS_CHUNK]).float()
        chosen = torch.tensor(ids[start : start + LOGITS_CHUNK], device=logits.device)
        total += float(logits.log_softmax(-1).gather(-1, chosen[:, None]).double().sum())
    return total
