"""Where the model looked: the attention of each reply token to the images, in their own pixels.

The rows that predict the reply are computed again, some at a time, and no others; no matrix of all positions is held.
Weights of the cross-attention say what a token took in and from where, not why the model wrote it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from adapters.cross_attention import GatedCrossAttentionLayer
from adapters.masks import CrossMask
from vlm.attention import attention_weights
from vlm.batch import Batch, DecoderPrompt, build_batch
from vlm.errors import VLMError, shown
from vlm.generation.generate import not_finite, prefill
from vlm.generation.reply import Reply
from vlm.images.cache import EncodedImage
from vlm.images.views import scaled_size
from vlm.model import VisionLanguageModel
from vlm.picture_map import Picture, pixel_maps
from vlm.prompt import Prompt
from vlm.request import RequestReader, listed
from vlm.tokenizer import Tokenizer

MAX_WEIGHTS = 2**24
"""Attention weights held at once, of all heads: 64 MiB."""
MAX_MAP_BYTES = 4 * 2**30

Chosen = int | Sequence[int] | None
"""One, several, or all."""


def explain(
    requests: RequestReader,
    prompt: Prompt,
    reply: Reply | str | Sequence[int],
    *,
    layers: Chosen = None,
    heads: Chosen = None,
    tokens: Chosen = None,
    max_side: int | None = None,
) -> list[Tensor] | list[list[Tensor]]:
    """Return the maps of `VLM.explain`, which describes the arguments."""
    model = requests.model
    if not prompt.images:
        raise VLMError("invalid_request", "messages hold no image; expected at least one to look at; add an image")
    ids = _reply_ids(reply, requests.tokenizer)
    cross_layers = [layer for layer in model.decoder.layers if isinstance(layer, GatedCrossAttentionLayer)]
    layers = [cross_layers[index] for index in _chosen("layers", layers, len(cross_layers))]
    heads = _chosen("heads", heads, model.config.decoder.num_heads)
    chosen = _chosen("tokens", tokens, len(ids))
    requests.room(prompt, len(ids))
    # Kept here, whatever the cache drops meanwhile.
    entries = [requests.images.encode(image) for image in prompt.images]
    pictures = _pictures([entry.encoded for entry in entries], requests, max_side)
    _check_memory(len(chosen), pictures)
    if not chosen:
        return []
    ready = DecoderPrompt(prompt.ids, [requests.images.keys_values(entry)[0] for entry in entries])
    batch = build_batch([ready], requests.tokenizer.image_marker_id, model.decoder.embedding.weight.device)
    weights = reply_attention(model, batch, ids[: max(chosen) + 1], layers, heads)
    first, end = batch.visible[0, -1].tolist()
    with torch.inference_mode(False):
        # Copies made out here are ordinary tensors, which callers may change.
        encoded = [entry.encoded for entry in entries]
        weights, visible = _of_all_tokens(weights.cpu().double()[chosen], encoded, (first, end))
        maps = pixel_maps(weights, pictures, visible)
    return [images[0] for images in maps] if len(pictures) == 1 else maps


# Attention


def reply_attention(
    model: VisionLanguageModel,
    batch: Batch,
    ids: list[int],
    layers: list[GatedCrossAttentionLayer],
    heads: list[int],
) -> Tensor:
    """Return the attention [s, l] in float32, mean over `layers` and `heads`, with which each of `ids` was predicted.

    `batch` is the one prompt that `ids` follow, none of them missing.
    """
    num_prompt = batch.lengths[0] - 1
    # The prompt's last id predicts the first of the reply, and each of these the next one.
    rows = torch.cat([batch.ids[0, num_prompt:], torch.tensor(ids[:-1], dtype=torch.int64, device=batch.ids.device)])
    before = batch._replace(ids=batch.ids[:, :num_prompt], lengths=[num_prompt])
    cache = prefill(model, before, num_prompt + len(rows)).cache
    mask = batch.reply_mask()
    size = max(1, MAX_WEIGHTS // (model.config.decoder.num_heads * batch.image.keys.shape[3]))
    found = []
    for block in rows.split(size):
        with _recorded(layers, heads, mask) as recorded:
            cache = model.decoder(block[None], cache, batch.image, mask).cache
        found.append(torch.stack(recorded).mean(0))
    weights = torch.cat(found)
    if not bool(weights.isfinite().all()):
        raise not_finite()
    return weights


@contextmanager
def _recorded(layers: list[GatedCrossAttentionLayer], heads: list[int], mask: CrossMask) -> Iterator[list[Tensor]]:
    """Within, collect the attention [s, l] of each of `layers` in the passes that are given this very `mask`."""
    recorded = []

    def record(layer: GatedCrossAttentionLayer, inputs: tuple) -> None:
        x, image, own = inputs
        # Other threads may be passing through the same layers.
        if own is mask:
            queries = layer.attention.queries(layer.attention_norm(x))
            recorded.append(attention_weights(queries, image.keys, mask=mask.keys)[0, heads].mean(0))

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _of_all_tokens(
    weights: Tensor, encoded: list[EncodedImage], visible: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """Return weights [s, l] of the tokens the decoder was given as those of all, zero for the others, and which of all
    the keys (first, end) `visible` stand for.
    """
    if all(image.given is None for image in encoded):
        return weights, visible
    counts = [image.num_visible for image in encoded]
    parts = []
    for image, part in zip(encoded, weights.split(counts, dim=1), strict=True):
        whole = part.new_zeros(len(part), image.tokens.shape[:2].numel())
        parts.append(part if image.given is None else whole.index_copy(1, image.given.cpu(), part))
    given, whole = (
        torch.tensor([0, *sizes]).cumsum(0).tolist() for sizes in (counts, [part.shape[1] for part in parts])
    )
    return torch.cat(parts, dim=1), tuple(whole[given.index(place)] for place in visible)


# What callers give


def _pictures(encoded: list[EncodedImage], requests: RequestReader, max_side: int | None) -> list[Picture]:
    if max_side is not None and (not isinstance(max_side, int) or isinstance(max_side, bool) or max_side < 1):
        raise VLMError("invalid_request", f"max_side is {shown(max_side)}; give an integer of at least 1, in pixels")
    vision = requests.model.config.vision
    pictures = []
    for image in encoded:
        processor = requests.images.processor
        canvas = fitted = None
        if min(image.size) > 0 and 0 < image.scale <= 1:
            canvas, fitted = processor.placement(scaled_size(image.size, processor, image.scale))
        if canvas != image.canvas:
            raise VLMError(
                "invalid_request",
                f"the encoded image says it is of {image.size!s:.40} pixels on {image.canvas!s:.30} tiles, which does "
                "not go together; encode the picture again with this model",
            )
        scale = 1 if max_side is None else min(1, max_side / max(image.size))
        map_size = (max(1, round(image.size[0] * scale)), max(1, round(image.size[1] * scale)))
        pictures.append(Picture(vision=vision, canvas=canvas, fitted=fitted, map_size=map_size))
    return pictures


def _check_memory(num_tokens: int, pictures: list[Picture]) -> None:
    num_bytes = 4 * num_tokens * sum(height * width for height, width in (each.map_size for each in pictures))
    if num_bytes > MAX_MAP_BYTES:
        raise VLMError(
            "invalid_request",
            f"the maps of {num_tokens} tokens would take {num_bytes / 2**30:.1f} GiB; expected at most "
            f"{MAX_MAP_BYTES / 2**30:.0f}; give max_side for smaller maps, or tokens for fewer",
        )


def _reply_ids(reply: object, tokenizer: Tokenizer) -> list[int]:
    if isinstance(reply, str):
        return tokenizer.encode(reply)
    ids = reply.token_ids if isinstance(reply, Reply) else listed("reply", reply)
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < tokenizer.vocab_size:
            raise VLMError(
                "invalid_request",
                f"reply holds {shown(token_id)}; expected token ids from 0 to {tokenizer.vocab_size - 1}; "
                "give a Reply, its token_ids or its text",
            )
    return list(ids)


def _chosen(name: str, chosen: Chosen, count: int) -> list[int]:
    """Return the places that `chosen` names, each from 0 to `count` - 1."""
    if chosen is None:
        return list(range(count))
    places = [chosen] if isinstance(chosen, int) else listed(name, chosen)
    for place in places:
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < count:
            raise VLMError(
                "invalid_request",
                f"{name} holds {shown(place)}; expected places counted from 0, below {count}; leave it out for all",
            )
    if not places and name != "tokens":
        raise VLMError("invalid_request", f"{name} is empty; expected at least one; leave it out for all")
    return places
