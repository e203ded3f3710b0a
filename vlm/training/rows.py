"""What the model is trained on: rows of ids with what each position should predict, and how likely it finds that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vision_encoder.preprocess import ProcessedImage
from vlm.batch import DecoderPrompt, PromptImage, build_batch
from vlm.model import VisionLanguageModel

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


def reply_log_probabilities(model: VisionLanguageModel, rows: Sequence[Row], marker_id: int | None) -> Tensor:
    """Return for each row [b] the sum of the log-probabilities of its targets, in float32, with gradients."""
    device = model.decoder.embedding.weight.device
    batch = build_batch(_prompts(model, rows, device), marker_id, device)
    targets = torch.full(batch.ids.shape, IGNORED)
    for place, row in enumerate(rows):
        targets[place, : len(row.targets)] = torch.tensor(row.targets)
    wanted = (targets != IGNORED).nonzero()
    totals = torch.zeros(len(rows), device=device)
    if not len(wanted):
        return totals
    hidden = model.decoder(batch.ids, None, batch.image, batch.mask(0, batch.ids.shape[1])).hidden
    owners, places = wanted.to(device).unbind(1)
    # Logits of the learned positions alone: those of a whole prompt over a large vocabulary would take gigabytes.
    logits = model.decoder.logits(hidden[owners, places]).float()
    chosen = targets[wanted[:, 0], wanted[:, 1]].to(device)
    return totals.index_add(0, owners, -functional.cross_entropy(logits, chosen, reduction="none"))


def _prompts(model: VisionLanguageModel, rows: Sequence[Row], device: torch.device) -> list[DecoderPrompt]:
    """Return the rows with their images encoded, those of equally many tiles together and each once."""
    images = list({id(image.pixels): image for row in rows for image in row.images}.values())
    encoded: dict[int, PromptImage] = {}
    for count in sorted({len(image.pixels) for image in images}):
        group = [image for image in images if len(image.pixels) == count]
        pixels = torch.stack([image.pixels for image in group]).to(device)
        if model.config.reference == "transformers":
            # There, text before the first image also attends to missing tiles.
            missing = model.config.vision.max_tiles - count
            pixels = torch.cat([pixels, pixels.new_zeros(len(group), missing, *pixels.shape[2:])], dim=1)
        tokens = model.encode(pixels, [image.canvas for image in group])[1]
        kv = model.decoder.image_kv(tokens.flatten(1, 2))
        for place, image in enumerate(group):
            own = type(kv)(*(part[:, place : place + 1] for part in kv))
            encoded[id(image.pixels)] = PromptImage(own, count * tokens.shape[2])
    return [DecoderPrompt(row.ids, [encoded[id(image.pixels)] for image in row.images]) for row in rows]
