"""From what a caller asks to what the decoder is given: prompts that fit the context, with their images encoded."""

from collections.abc import Iterable
from pathlib import Path

from vlm.batch import Batch, DecoderPrompt, build_batch
from vlm.errors import VLMError, shown
from vlm.generation.sampling import DEFAULT_MAX_NEW_TOKENS
from vlm.images.source import ImageSource
from vlm.model import VisionLanguageModel
from vlm.prompt import Prompt, encode_completion, encode_prompt, parse_messages
from vlm.tokenizer import Tokenizer


class RequestReader:
    """Reads the requests to one model."""

    def __init__(self, model: VisionLanguageModel, tokenizer: Tokenizer, images: ImageSource | None):
        self.model, self.tokenizer = model, tokenizer
        self._images = images

    @property
    def images(self) -> ImageSource:
        """Where images are encoded. Raises: VLMError in a text-only model."""
        if self._images is None:
            raise _text_only()
        return self._images

    def chat(self, messages: object, *, continue_final: bool = False) -> Prompt:
        """Return the prompt of a conversation; its images are not opened yet."""
        return self._checked(encode_prompt(self.tokenizer, parse_messages(messages), continue_final=continue_final))

    def completion(self, parts: object) -> Prompt:
        """Return the prompt of texts and images without a chat format; its images are not opened yet."""
        return self._checked(encode_completion(self.tokenizer, parts))

    def room(self, prompt: Prompt, wanted: int | None) -> int:
        """Return how many tokens may follow `prompt`: those wanted, or for None what a reply gets by default.

        Raises: VLMError (context_length_exceeded) where they do not fit the context.
        """
        limit = self.model.config.decoder.max_context
        room = limit - len(prompt.ids)
        if room < (1 if wanted is None else wanted):
            more = f" and {wanted} more were asked for" if wanted else ""
            raise VLMError(
                "context_length_exceeded",
                f"the prompt has {len(prompt.ids)} tokens{more}, the context {limit}; shorten it or ask for less",
            )
        return min(room, DEFAULT_MAX_NEW_TOKENS) if wanted is None else wanted

    def ready(self, prompt: Prompt) -> DecoderPrompt:
        """Return `prompt` with those of its images encoded that are not known yet."""
        views = [self.images.prompt_views(image) for image in prompt.images]
        # An image with fewer views than another is shown in some of them again.
        images = [[of[place % len(of)] for of in views] for place in range(max(map(len, views), default=1))]
        return DecoderPrompt(prompt.ids, images[0], images[1:])

    def batch(self, prompts: list[Prompt]) -> Batch:
        """Return prompts as one batch."""
        ready = [self.ready(prompt) for prompt in prompts]
        return build_batch(ready, self.tokenizer.image_marker_id, self.model.decoder.embedding.weight.device)

    def _checked(self, prompt: Prompt) -> Prompt:
        if prompt.images and self._images is None:
            raise _text_only()
        return prompt


def question_about(image: object, question: str) -> list[dict]:
    """Return the conversation that asks `question` about `image`."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def questions(pairs: object) -> tuple[list[list[dict]], list[int]]:
    """Return a conversation a pair, and an order in which those about the same image stand side by side.

    Side by side they are computed together, share its keys and values, and need it in the cache once.
    """
    pairs = listed("pairs", pairs)
    places: dict[object, list[int]] = {}
    for place, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise VLMError("invalid_request", f"pairs[{place}] is no pair; give (image, question)")
        # Pictures that are equal under different names are found equal later, by their pixels.
        name = pair[0] if isinstance(pair[0], str | bytes | Path) else id(pair[0])
        places.setdefault(name, []).append(place)
    return [question_about(*pair) for pair in pairs], [place for same in places.values() for place in same]


def listed(name: str, values: object) -> list:
    """Return `values` as a list. Raises: VLMError for what is no series."""
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise VLMError("invalid_request", f"{name} is of type {type(values).__name__:.40}; give a list")
    return list(values)


def check_batch_size(batch_size: object) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise VLMError("invalid_request", f"batch_size is {shown(batch_size)}; give an integer of at least 1")


def _text_only() -> VLMError:
    return VLMError("invalid_request", "this is a text-only model; give text alone, or load a vision model")
