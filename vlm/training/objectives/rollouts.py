"""Replies that the model under training writes itself, each with how likely every token of it was."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.batch import build_batch
from vlm.generation.generate import BadLogits, decode, prefill
from vlm.generation.sampling import GenerationConfig, Sampler
from vlm.model import VisionLanguageModel
from vlm.tokenizer import Tokenizer
from vlm.training.rows import IGNORED, Row, decoder_prompts, predict, score_targets


class Rollout(NamedTuple):
    """A reply to learn from."""

    rows: list[Row]
    """One: the prompt, and the reply as what is learned."""
    old: Tensor
    """[k] log-probability of each token when it was written."""
    reference: Tensor
    """[k] by the model as it was when the run began."""
    advantages: Tensor
    """[k] how much better than expected the reply went on from each token."""
    returns: Tensor
    """[k] the reward that was still to come."""


class Attempt(NamedTuple):
    """A reply that waits for its reward."""

    row: Row
    prompt: str
    """With its headers and markers, as the model reads it."""
    reply: str
    answer: str
    """What the sample says as its last reply."""


def write_replies(
    model: VisionLanguageModel, tokenizer: Tokenizer, rows: Sequence[Row], seeds: Sequence[int], max_new_tokens: int
) -> list[Attempt]:
    """Return a reply, drawn by its seed from all that the model finds possible, to the prompt of each row.

    The prompt is what stands before a row's first target. A reply ends with its end of turn, or without one where it
    grows longer than `max_new_tokens`.
    """
    starts = [next(place for place, target in enumerate(row.targets) if target != IGNORED) + 1 for row in rows]
    prompts = [Row(ids=row.ids[:start], targets=[], images=row.images) for row, start in zip(rows, starts, strict=True)]
    replies = _sample(model, tokenizer, prompts, seeds, max_new_tokens)
    attempts = []
    for row, prompt, reply in zip(rows, prompts, replies, strict=True):
        ids, start = prompt.ids + reply, len(prompt.ids)
        targets = predict(ids, [place >= start for place in range(len(ids))], model.config.decoder.vocab_size)
        attempts.append(
            Attempt(
                Row(ids=ids, targets=targets, images=row.images),
                tokenizer.decode(prompt.ids),
                tokenizer.decode(reply, skip_special=True),
                tokenizer.decode(row.ids[start:], skip_special=True),
            )
        )
    return attempts


@torch.no_grad()
def _sample(
    model: VisionLanguageModel, tokenizer: Tokenizer, prompts: Sequence[Row], seeds: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    marker_id, device = tokenizer.image_marker_id, model.decoder.embedding.weight.device
    batch = build_batch(decoder_prompts(model, prompts, marker_id), marker_id, device)
    prefilled = prefill(model, batch, batch.ids.shape[1] + max_new_tokens)
    samplers = [
        Sampler(GenerationConfig(temperature=1.0, seed=seed), prompt.ids, device)
        for seed, prompt in zip(seeds, prompts, strict=True)
    ]
    replies: list[list[int]] = [[] for _ in prompts]
    ended: set[int] = set()
    for step in decode(model, batch, prefilled, samplers, [max_new_tokens] * len(prompts), ended):
        if isinstance(step, BadLogits):
            raise step.error
        replies[step.row].append(step.token_id)
        if step.token_id in tokenizer.stop_ids:
            ended.add(step.row)
    return replies


@torch.no_grad()
def score_rows(
    model: VisionLanguageModel, rows: Sequence[Row], marker_id: int | None, size: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return log-probabilities [k] and hidden states [k, d] of each row's targets, `size` rows at a time."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        scored = score_targets(model, part, marker_id)
        counts = [row.num_targets for row in part]
        found[0].extend(scored.log_probabilities.split(counts))
        found[1].extend(scored.hidden.split(counts))
    return found
