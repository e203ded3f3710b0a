"""Our model as another harness uses it: replies to prompts as they come, and how likely given replies are."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import NamedTuple

from eval.backends.checkpoint_model import CheckpointModel
from eval.backends.model_answers import ModelAnswers, Request, fitting_rows
from vlm.errors import VLMError, shown

logger = logging.getLogger(__name__)


class Ask(NamedTuple):
    """One question."""

    messages: list[dict]
    """In OpenAI's form; an image part is `{"type": "image", "image": ...}` with whatever the model takes as an image.
    A last turn of the assistant is gone on with."""
    generation: dict
    """Fields of a GenerationConfig."""


class Likelihood(NamedTuple):
    """How likely a given reply is."""

    logprob: float
    is_greedy: bool
    """Whether it is how the model's own reply begins."""


class Guest:
    """A loaded model that answers in batches."""

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        device: str | None = None,
        dtype: str = "auto",
        reference: str = "meta",
        batch_size: int | str | None = None,
    ):
        """pretrained: a folder or a Hub name; None is the model that ships. batch_size: None or "auto" is what fits."""
        source = CheckpointModel(source=pretrained, device=_present(device), dtype=dtype, reference=reference)
        self.name = source.name
        self.model = source.open()
        self._rows = fitting_rows(self.model) if batch_size in (None, "auto") else int(batch_size)
        self._answers = ModelAnswers(self.model)
        self._greedy: tuple[object, int, tuple[int, ...]] = (None, 0, ())

    def replies(self, asks: Iterable[Ask]) -> Iterator[str]:
        """Yield a reply a question, in their order, holding the images of one batch at a time.

        A question that cannot be answered gets an empty reply and an error in the log, for the harness has no other
        place for it.
        """
        for _, alike in groupby(asks, key=_generated_alike):
            while batch := list(islice(alike, self._rows)):
                for outcome in self._answers(_request(batch)):
                    if "error" in outcome:
                        logger.error("a question got no reply: %s", outcome["error"])
                    yield outcome.get("text", "")

    def likelihood(self, messages: list[dict], text: str) -> Likelihood:
        """Return how likely `text`, without blanks before it, is as the reply to `messages`."""
        text = text.lstrip()
        (score,) = self.model.score(messages, [text])
        ids = tuple(self.model.tokenizer.encode(text))
        return Likelihood(score.logprob, self._greedy_ids(messages, len(ids))[: len(ids)] == ids)

    def _greedy_ids(self, messages: list[dict], num_tokens: int) -> tuple[int, ...]:
        """Return the beginning of the model's own reply; the options of one question follow each other."""
        from vlm.generation.sampling import GenerationConfig

        known, length, ids = self._greedy
        if known != messages or length < num_tokens:
            config = GenerationConfig(max_new_tokens=num_tokens)
            ids = tuple(self.model.chat(messages, config=config).token_ids)
            self._greedy = (messages, num_tokens, ids)
        return ids


def _present(device: str | None) -> str:
    """Return the device that is meant; the harnesses say CUDA where nobody said anything."""
    import torch

    if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
        if device is not None:
            logger.warning("there is no %s here; the model runs where it can", device)
        return "auto"
    return device


def generation_of(wanted: Mapping[str, object], *, default_tokens: int) -> dict:
    """Return the fields of a GenerationConfig that a harness's keywords mean.

    Raises: VLMError for beam search, which this model does not do.
    """
    num_beams = wanted.get("num_beams") or 1
    if num_beams != 1:
        raise VLMError(
            "invalid_request",
            f"num_beams is {shown(num_beams)}; this model is greedy or draws; give num_beams=1",
        )
    temperature = float(wanted.get("temperature") or 0)
    draws = bool(wanted.get("do_sample", temperature > 0)) and temperature > 0
    until = wanted.get("until") or ()
    fields = {
        "max_new_tokens": int(wanted.get("max_new_tokens") or wanted.get("max_gen_toks") or default_tokens),
        "stop": (until,) if isinstance(until, str) else tuple(text for text in until if text),
    }
    if draws:
        fields |= {"temperature": temperature, "seed": int(wanted.get("seed") or 0)}
        fields |= {name: wanted[name] for name in ("top_p", "top_k") if wanted.get(name) is not None}
    return fields


def _generated_alike(ask: Ask) -> tuple:
    return sorted(ask.generation.items()), ask.messages[-1]["role"] == "assistant"


def _request(asks: list[Ask]) -> Request:
    images: dict[str, object] = {}

    def named(part: dict) -> dict:
        if part["type"] != "image":
            return part
        name = _digest(part["image"])
        images[name] = part["image"]
        return {"type": "image", "image": name}

    conversations = [
        [
            turn if isinstance(turn["content"], str) else {**turn, "content": [named(part) for part in turn["content"]]}
            for turn in ask.messages
        ]
        for ask in asks
    ]
    continues = asks[0].messages[-1]["role"] == "assistant"
    options = [()] * len(asks)
    return Request(
        conversations=conversations,
        options=options,
        images=images,
        generation=asks[0].generation,
        continue_final=continues,
    )


def _digest(image: object) -> str:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if hasattr(image, "tobytes"):
        about = f"{type(image).__name__} {getattr(image, 'mode', '')} {getattr(image, 'size', '')}"
        return hashlib.sha256(about.encode() + image.tobytes()).hexdigest()
    return hashlib.sha256(repr(image).encode()).hexdigest()
