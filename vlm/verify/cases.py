"""The built-in pictures and prompts, and what our own model answers to them."""

from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from vision_encoder.config import VisionConfig
from vision_encoder.preprocess import ProcessedImage
from vlm.batch import DecoderPrompt, build_batch
from vlm.generation.generate import BadLogits, decode, not_finite, prefill
from vlm.generation.sampling import GenerationConfig, Sampler
from vlm.pipeline import VLM

NUM_GREEDY = 8

# Sides in tiles (height, width), for pictures of one, two and four tiles where so many are allowed.
_PICTURES = {"small": (0.8, 0.6), "wide": (0.7, 1.9), "large": (1.9, 1.8), "tall": (3.8, 0.9)}

# A name in brackets is a picture, anything else what the user says.
_VISION_PROMPTS: dict[str, tuple[str, ...]] = {
    "text only": ("Name three colours, and say which of them is the warmest.",),
    "one tile": ("[small]", "What is shown?"),
    "two tiles, text first": ("Look closely, then answer.", "[wide]", "What is on the left?"),
    "four tiles, square": ("[large]", "Describe this image."),
    "four tiles, tall, last": ("What is at the top of this one?", "[tall]"),
    "two images, adjacent": ("[small]", "[wide]", "What do they have in common?"),
    "two images, apart": ("Before:", "[large]", "After:", "[small]", "What changed?"),
}
_TEXT_PROMPTS: dict[str, tuple[str, ...]] = {
    "short": ("Name three colours.",),
    "long": ("A lighthouse had 1,204 visitors in May and 2,310 in June. " * 4, "How many more came in June?"),
    "other scripts": ("Übersetze: 你好，世界 — здравствуй, мир 🙂",),
}


class Question(NamedTuple):
    """What an oracle is asked."""

    ids: list[int]
    """Prompt and our greedy reply, an image marker for each image."""
    num_prompt: int
    marker_id: int | None
    images: list[ProcessedImage]
    """In the order of their markers."""


class Answers(NamedTuple):
    """What a model computes for one question; on the CPU."""

    features: list[Tensor]
    """[t, p, f] of each image's real tiles."""
    tokens: list[Tensor]
    """[t, p, d] of each image's real tiles."""
    logits: Tensor
    """[s, n] of every id of the question."""


class Case(NamedTuple):
    """One prompt with our answers; the logits of the reply's ids are not among them."""

    name: str
    question: Question
    ours: Answers


def case_names(has_vision: bool) -> list[str]:
    """Return the names of the built-in prompts."""
    return list(_VISION_PROMPTS if has_vision else _TEXT_PROMPTS)


@torch.inference_mode()
def build_case(vlm: VLM, name: str) -> Case | None:
    """Return our answers to a built-in prompt; None where it is too long for the model's context.

    The greedy reply is written with the cache, token by token. An oracle reads it in one pass: it would have written
    the same exactly when, at each place, its likeliest token is the next one.
    """
    vision, marker_id = vlm.model.config.vision, vlm.tokenizer.image_marker_id
    parts = (_VISION_PROMPTS if vision else _TEXT_PROMPTS)[name]
    pictures = [draw_picture(part[1:-1], vision) for part in parts if part[0] == "["]
    drawn = iter(pictures)
    content = [
        {"type": "image", "image": next(drawn)} if part[0] == "[" else {"type": "text", "text": part} for part in parts
    ]
    messages = [{"role": "user", "content": content}]
    ids = vlm.prompt_ids(messages)
    if len(ids) + NUM_GREEDY > vlm.model.config.decoder.max_context:
        return None
    encoded = [vlm.encode_image(picture) for picture in pictures]
    prompt = DecoderPrompt(ids, [vlm.images.prompt_views(image)[0] for image in encoded])
    batch = build_batch([prompt], marker_id, vlm.device)
    prefilled = prefill(vlm.model, batch, len(ids) + NUM_GREEDY)
    sampler = Sampler(GenerationConfig(), ids, vlm.device)
    steps = list(decode(vlm.model, batch, prefilled, [sampler], [NUM_GREEDY], set()))
    if any(isinstance(step, BadLogits) for step in steps):
        raise not_finite()
    greedy = [step.token_id for step in steps]
    ours = Answers(
        [image.features[: image.num_tiles].cpu() for image in encoded],
        [image.tokens[: image.num_tiles].cpu() for image in encoded],
        vlm.logits(messages).cpu(),
    )
    images = [vlm.images.processor(picture) for picture in pictures]
    return Case(name, Question(ids + greedy, len(ids), marker_id, images), ours)


def draw_picture(name: str, config: VisionConfig) -> numpy.ndarray:
    """Return a built-in picture [h, w, 3] uint8: ramps, rings and bars, so that no two patches are alike."""
    height, width = (max(1, round(side * config.tile_size)) for side in _PICTURES[name])
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.int64)
    ramp = 255 * x // width
    rings = ((x - width // 3) ** 2 + (y - height // 2) ** 2) * 8 // config.tile_size % 256
    bars = 255 * y // height ^ (x * 16 // config.tile_size % 2 * 96)
    return numpy.stack([ramp, rings, bars], axis=-1).astype(numpy.uint8)
