"""Who answers the questions: this project's model in a process of its own, or a server. What all of them share."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from eval.records import ImageRef, Prompt, Sample


class Question(NamedTuple):
    """A sample, and what the model is asked about it."""

    sample: Sample
    prompt: Prompt
    digest: str = ""
    """See `prompt_digest`; the log needs it, a backend does not."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a backend was told."""

    text: str
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    confidence: float | None = None
    option_scores: tuple[tuple[float, int] | None, ...] | None = None
    """Log-probability and number of tokens of each option as the reply, where that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no answer; it concerns this question alone."""

    reason: str


class Asked(NamedTuple):
    """A question and what came of it."""

    question: Question
    outcome: Answer | Failure


class Backend(Protocol):
    """Answers questions. It is entered before it is used, and left when the run is over, however that ends."""

    def __enter__(self) -> "Backend": ...

    def __exit__(self, *exception) -> None: ...

    @property
    def name(self) -> str:
        """What the model is called; known before it is loaded."""

    @property
    def generation(self) -> dict:
        """How replies are generated, as the manifest holds it, but for what a prompt says itself."""

    def describe(self) -> dict:
        """Return which model answers, as the manifest holds it; waits until the backend is ready."""

    @property
    def batch_size(self) -> int:
        """How many questions are best computed together; waits until the backend is ready."""

    def answers(self, batches: Iterable[list[Question]]) -> Iterator[Asked]:
        """Yield what came of each question, in any order, never holding more than is being answered.

        Raises: VLMError where the fault is not a question's; everything that was yielded stands.
        """


def shown_images(prompt: Prompt) -> list[ImageRef]:
    """Return the images of `prompt` in its order."""
    return [
        part["image"]
        for message in prompt.messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]


def conversation(prompt: Prompt, image_part: Callable[[ImageRef], dict]) -> list[dict]:
    """Return the messages of `prompt` with each image as `image_part` makes it, and the beginning of the reply."""
    messages = [{**message, "content": _content(message["content"], image_part)} for message in prompt.messages]
    return [*messages, {"role": "assistant", "content": prompt.prefill}] if prompt.prefill else messages


def _content(content: str | list[dict], image_part: Callable[[ImageRef], dict]) -> str | list[dict]:
    if isinstance(content, str):
        return content
    return [image_part(part["image"]) if part["type"] == "image" else part for part in content]
