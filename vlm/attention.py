"""Grouped-query attention (arXiv 2305.13245): the kernel that is used, and a readable flash attention, its oracle.

Key/value heads are never repeated in memory. Flash attention (arXiv 2205.14135, 2307.08691) goes over the keys in
blocks with a running maximum and a running sum, and never holds a score matrix.
"""

import math

import torch
from einops import einsum, rearrange
from torch import Tensor

from vision_encoder import attention
from vlm import gpu
from vlm.kv_cache import dequantize_vectors
from vlm.native import MAX_ROWS, attend_one


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return [b, h, s, e] for queries [b, h, s, e] and keys and values [b, g, l, e].

    `scales` [b, g, l] are those of keys and of values in int8. `mask` is bool, broadcastable to [b, h, s, l], True
    where a key may be seen, or where one trains [b, 1, 1, l] float32, added to the logits. `causal`, which needs s <= l
    and no mask: the queries are the last of the positions, and each sees the keys up to its own.
    """
    if mask is not None and mask.is_floating_point():
        return attention.attend(q, k, v, bias=mask[:, 0, 0])
    if q.shape[2] == 1 and gpu.attends(q, k, v, scales, mask):
        return gpu.attend_one(q, k, v, scales, mask=mask)
    if mask is None and q.shape[2] <= MAX_ROWS and (out := _one_by_one(q, k, v, scales, causal)) is not None:
        return out
    if scales is not None:
        k, v = (dequantize_vectors(codes, scale, q.dtype) for codes, scale in zip((k, v), scales, strict=True))
    return attention.attend(q, k, v, mask=mask, causal=causal)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, scales: tuple[Tensor, Tensor] | None, causal: bool) -> Tensor | None:
    """Return what `attend` returns for few queries of one row, each rounded as it is alone; None where torch has to."""
    found = []
    for place, query in enumerate(q.split(1, dim=2)):
        end = k.shape[2] - (q.shape[2] - 1 - place if causal else 0)
        own = None if scales is None else tuple(scale[:, :, :end] for scale in scales)
        if (out := attend_one(query, k[:, :, :end], v[:, :, :end], own)) is None:
            return None
        found.append(out)
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def blockwise_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False, block_size: int = 128
) -> Tensor:
    """Return what `attend` returns, in memory linear in s and l: the twin in plain torch, for tests and reading.

    Rows that may see no key at all give zeros.
    """
    q = rearrange(q, "b (g r) s e -> b g r s e", g=k.shape[1])
    out = torch.zeros_like(q, dtype=torch.float32)
    running_max = out.new_full(out.shape[:-1], -math.inf)
    running_sum = out.new_zeros(out.shape[:-1])
    first = k.shape[2] - q.shape[3] if causal else None
    for start in range(0, k.shape[2], block_size):
        keys, values = k[:, :, start : start + block_size], v[:, :, start : start + block_size]
        scores = _scores(q, keys, mask, first, start)
        block_max = torch.maximum(running_max, scores.amax(-1))
        # A row that has seen nothing yet has maximum -inf; shifting it by 0 instead keeps exp(-inf) = 0.
        shift = block_max.masked_fill(block_max == -math.inf, 0)
        weights = (scores - shift[..., None]).exp()
        rescale = (running_max - shift).exp()
        running_sum = running_sum * rescale + weights.sum(-1)
        out = out * rescale[..., None] + einsum(weights, values.float(), "b g r s l, b g l e -> b g r s e")
        running_max = block_max
    out = out / running_sum.masked_fill(running_sum == 0, 1)[..., None]
    return rearrange(out, "b g r s e -> b (g r) s e").to(k.dtype)


def attention_weights(q: Tensor, k: Tensor, *, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return the attention [b, h, s, l] in float32 of chosen queries [b, h, s, e] over keys [b, g, l, e].

    `bias` [b, l] is added to the logits of each key.
    """
    q = rearrange(q, "b (g r) s e -> b g r s e", g=k.shape[1])
    scores = _scores(q, k, mask, None, 0)
    if bias is not None:
        scores = scores + bias[:, None, None, None]
    return rearrange(scores.softmax(-1), "b g r s l -> b (g r) s l")


def _scores(q: Tensor, keys: Tensor, mask: Tensor | None, first: int | None, start: int) -> Tensor:
    """Return the scaled scores [b, g, r, s, block] of keys that begin at position `start`, -inf where hidden.

    `first`: the position of the first query, where each sees the keys up to its own alone.
    """
    scores = einsum(q.float(), keys.float(), "b g r s e, b g l e -> b g r s l") / math.sqrt(q.shape[-1])
    stop = start + keys.shape[2]
    if mask is not None:
        mask = mask[..., start:stop] if mask.shape[-1] > 1 else mask
        mask = mask.expand(torch.broadcast_shapes(mask.shape, (1, q.shape[1] * q.shape[2], 1, 1)))
        mask = rearrange(mask, "b (g r) s l -> b g r s l", g=q.shape[1])
        scores = scores.masked_fill(~mask, -math.inf)
    if first is not None:
        positions = torch.arange(first, first + q.shape[3], device=q.device)
        scores = scores.masked_fill(torch.arange(start, stop, device=q.device) > positions[:, None], -math.inf)
    return scores
