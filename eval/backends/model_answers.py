"""A batch of questions put to a loaded model: images encoded once, fewer rows at once when the memory runs out."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.backends.rows import Halving, rows_on_cpu, rows_that_fit
from vlm.errors import VLMError, is_out_of_memory

if TYPE_CHECKING:
    from vlm.images.cache import EncodedImage
    from vlm.pipeline import VLM

OUT_OF_MEMORY = {"error": "the memory ran out for this sample alone; give a smaller dtype, model or --max-new-tokens"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Questions to be answered together."""

    conversations: list[list[dict]]
    """In OpenAI's form; an image is named by its digest."""
    options: list[tuple[str, ...]]
    """For each conversation the replies whose likelihood is wanted; "" is none."""
    images: dict[str, bytes]
    """By digest."""
    generation: dict
    """Fields of a GenerationConfig."""
    continue_final: bool


class ModelAnswers:
    """Answers requests, and remembers the images of the last one."""

    def __init__(self, model: "VLM"):
        self.model = model
        self._encoded: dict[str, EncodedImage | VLMError] = {}
        self._chat = Halving(self._chat_now, out_of_memory=is_out_of_memory, free=_free)

    def __call__(self, request: Request) -> list[dict]:
        """Return what came of each question, as JSON can hold it."""
        self._encode(request.images)
        outcomes: list[dict | None] = [None] * len(request.conversations)
        rows = []
        for place, messages in enumerate(request.conversations):
            try:
                rows.append((place, self._with_images(messages), request))
            except VLMError as error:
                outcomes[place] = _refusal(error)
        for (place, messages, _), outcome in zip(rows, self._chat(rows, OUT_OF_MEMORY), strict=True):
            outcomes[place] = outcome
            if request.options[place] and "error" not in outcome:
                outcomes[place] = self._with_likelihood(outcome, messages, request, request.options[place])
        return outcomes

    def _encode(self, images: dict[str, bytes]) -> None:
        """Have exactly `images` encoded; those of the request before that come again are not encoded again."""
        self._encoded = {name: self._encoded[name] for name in images if name in self._encoded}
        for name, content in images.items():
            if name not in self._encoded:
                self._encoded[name] = self._encode_one(content)

    def _encode_one(self, content: bytes) -> "EncodedImage | VLMError":
        try:
            return self.model.encode_image(content)
        except VLMError as error:
            return error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        _free()
        return VLMError("device_unavailable", "the memory ran out while the image was encoded; give a smaller dtype")

    def _with_images(self, messages: list[dict]) -> list[dict]:
        return [{**message, "content": self._content(message["content"])} for message in messages]

    def _content(self, content: str | list[dict]) -> str | list[dict]:
        if isinstance(content, str):
            return content
        return [{**part, "image": self._image(part["image"])} if part["type"] == "image" else part for part in content]

    def _image(self, name: str) -> "EncodedImage":
        encoded = self._encoded[name]
        if isinstance(encoded, VLMError):
            raise VLMError(encoded.code, encoded.message)
        return encoded

    def _chat_now(self, rows: list) -> list[dict]:
        from vlm.generation.sampling import GenerationConfig

        request = rows[0][2]
        replies = self.model.chat_many(
            [messages for _, messages, _ in rows],
            config=GenerationConfig(**request.generation),
            continue_final=request.continue_final,
            batch_size=len(rows),
            return_errors=True,
        )
        return [_refusal(reply) if isinstance(reply, VLMError) else _reply(reply) for reply in replies]

    def _with_likelihood(self, outcome: dict, messages: list[dict], request: Request, options: tuple[str, ...]) -> dict:
        """Return `outcome` with (log-probability, tokens) of each of `options` as the reply."""
        if request.continue_final:
            messages = messages[:-1]  # an option is a reply of its own, not how a half-written one goes on
        try:
            scores = self.model.score(messages, [option for option in options if option])
        except VLMError as error:
            return _refusal(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return OUT_OF_MEMORY
        if not all(math.isfinite(score.logprob) for score in scores):
            return {"error": "the likelihood of an option is no number; expected finite weights; check the checkpoint"}
        measured = iter([score.logprob, score.num_tokens] for score in scores)
        return {**outcome, "option_scores": [next(measured) if option else None for option in options]}


def fitting_rows(model: "VLM") -> int:
    """Return how many questions with an image each are computed together, and let the image cache hold as many."""
    from vlm.model_sizes import ModelSizes

    info, config = model.info, model.model.config
    precision = "float32" if info.dtype.itemsize == 4 else "bfloat16"
    sizes, image_bytes = ModelSizes.of(config), 0
    if config.vision is not None:
        vision = config.vision
        numbers = vision.max_tiles * vision.tokens_per_tile * (vision.feature_dim + config.decoder.width)
        image_bytes = numbers * info.dtype.itemsize + vision.max_tiles * sizes.tile_bytes(precision)
    free_bytes = _free_bytes(info.device)
    if free_bytes is None:
        rows = rows_on_cpu(sizes.weight_bytes(precision))
    else:
        rows = rows_that_fit(free_bytes=free_bytes, token_bytes=sizes.token_bytes(precision), image_bytes=image_bytes)
    if model.images is not None:
        # Questions about one image come together: what is older than two batches is not asked for again.
        model.images.cache.max_bytes = min(model.images.cache.max_bytes, 4 * rows * image_bytes)
    return rows


def _free() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _free_bytes(device) -> int | None:
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return None


def _reply(reply) -> dict:
    return {
        "text": reply.text,
        "token_ids": reply.token_ids,
        "finish_reason": reply.finish_reason,
        "confidence": reply.confidence,
    }


def _refusal(error: VLMError) -> dict:
    return {"error": f"{error.message} [{error.code}]"}
