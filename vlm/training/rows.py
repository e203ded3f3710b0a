"""What the model is trained on: rows of ids with what each position should predict, and how likely it finds that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vision_encoder.preprocess import ProcessedImage
from vlm.batch import DecoderPrompt, PromptImage, build_batch
from vlm.model import VisionLanguageModel
from vlm.training.packing import packed_states

IGNORED = -100
"""The target of a position from which nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One text with its images, as the decoder reads it."""

    ids: list[int]
    targets: list[int]
    """The id that each position should predict, or IGNORED."""
    images: list[ProcessedImage]
    """One for each marker, in order."""

    @property
    def num_targets(self) -> int:
        return sum(target != IGNORED for target in self.targets)


def predict(ids: Sequence[int], learned: Sequence[bool], num_ids: int) -> list[int]:
    """Return the targets for `ids`: each position predicts the next id where that one is `learned`.

    Ids past `num_ids`, the image marker among them, have no row in the output head and are never predicted.
    """
    following = zip(ids[1:], learned[1:], strict=True)
    return [token_id if taken and token_id < num_ids else IGNORED for token_id, taken in following] + [IGNORED]


class Scored(NamedTuple):
    """How likely a model finds the targets of rows: `k` of them, one row after the other."""

    log_probabilities: Tensor
    """[k] float32, with gradients."""
    owners: Tensor
    """[k] int64: the row of each."""
    hidden: Tensor
    """[k, d]: the states that they were read off."""

    def by_row(self, num_rows: int) -> Tensor:
        """Return the sum of each row's log-probabilities [b]; 0 for a row without targets."""
        totals = torch.zeros(num_rows, device=self.owners.device)
        return totals.index_add(0, self.owners, self.log_probabilities)


def score_targets(
    model: VisionLanguageModel, rows: Sequence[Row], marker_id: int | None, pack: int | None = None
) -> Scored:
    """Return the log-probability of every target of the rows; see `hidden_states`."""
    hidden = hidden_states(model, rows, marker_id, pack)
    targets = torch.full(hidden.shape[:2], IGNORED)
    for place, row in enumerate(rows):
        targets[place, : len(row.targets)] = torch.tensor(row.targets)
    wanted = (targets != IGNORED).nonzero()
    owners, places = wanted.to(hidden.device).unbind(1)
    # Logits of the learned positions alone: those of a whole prompt over a large vocabulary would take gigabytes.
    chosen = targets[wanted[:, 0], wanted[:, 1]].to(hidden.device)
    read = hidden[owners, places]
    logits = model.decoder.logits(read).float()
    return Scored(-functional.cross_entropy(logits, chosen, reduction="none"), owners, read)


def reply_log_probabilities(
    model: VisionLanguageModel, rows: Sequence[Row], marker_id: int | None, pack: int | None = None
) -> Tensor:
    """Return for each row [b] the sum of the log-probabilities of its targets, in float32, with gradients."""
    return score_targets(model, rows, marker_id, pack).by_row(len(rows))


def hidden_states(
    model: VisionLanguageModel, rows: Sequence[Row], marker_id: int | None, pack: int | None = None
) -> Tensor:
    """Return what the decoder makes of every position of the rows [b, s, d], padded on the right.

    pack: compute them side by side in rows of so many tokens, instead of padding each; the result is the same.
    """
    prompts = decoder_prompts(model, rows, marker_id)
    if pack is not None:
        return packed_states(model.decoder, prompts, marker_id, pack)
    batch = build_batch(prompts, marker_id, model.decoder.embedding.weight.device)
    return model.decoder(batch.ids, None, batch.image, batch.mask(0, batch.ids.shape[1])).hidden


def decoder_prompts(model: VisionLanguageModel, rows: Sequence[Row], marker_id: int | None) -> list[DecoderPrompt]:
    """Return the rows with their images encoded, each once."""
    images = images_of(rows)
    tokens = encode_images(model, images, model.decoder.embedding.weight.device) if images else None
    return _prompts(model, rows, tokens, marker_id)


def images_of(rows: Sequence[Row]) -> list[ProcessedImage]:
    """Return the images of the rows, each once."""
    return list({id(image.pixels): image for row in rows for image in row.images}.values())


def encode_images(model: VisionLanguageModel, images: Sequence[ProcessedImage], device: torch.device) -> Tensor:
    """Return the image tokens [m, t, p, d]; pictures of fewer tiles are padded with missing ones.

    One call of the encoder, however many tiles each has: processes that share its weights then call it equally often.
    """
    most = max(len(image.pixels) for image in images)
    if model.config.reference == "transformers":
        # There, text before the first image also attends to missing tiles.
        most = model.config.vision.max_tiles
    pixels = torch.zeros(len(images), most, *images[0].pixels.shape[1:])
    for place, image in enumerate(images):
        pixels[place, : len(image.pixels)] = image.pixels
    return model.encode(pixels.to(device), [image.canvas for image in images])[1]


def _prompts(
    model: VisionLanguageModel, rows: Sequence[Row], tokens: Tensor | None, marker_id: int | None
) -> list[DecoderPrompt]:
    """Return the rows with the keys and values of their images, whose `tokens` are [m, t, p, d]."""
    encoded: dict[int, PromptImage] = {}
    kv = None if tokens is None else model.decoder.image_kv(tokens.flatten(1, 2))
    # An image without a marker is seen by no text: what it would give is zero, in either reference.
    seen = {id(image.pixels) for row in rows for image in row.images[: row.ids.count(marker_id)]}
    for place, image in enumerate(images_of(rows)):
        num_visible = len(image.pixels) * tokens.shape[2]
        kept = num_visible if model.config.reference == "meta" else kv.keys.shape[3]
        own = type(kv)(*(part[:, place : place + 1, :, :kept] for part in kv))
        if id(image.pixels) not in seen:
            own = type(kv)(*(part * 0 for part in own))
        encoded[id(image.pixels)] = PromptImage(own, num_visible)
    return [DecoderPrompt(row.ids, [encoded[id(image.pixels)] for image in row.images]) for row in rows]
