"""The replies to one request as far as they have come, and how an API writes them."""

from dataclasses import dataclass, field
from typing import Protocol

from vlm.serving.model_process.job import Event, Failed, Finished, Piece, Started, TokenLogprob
from vlm.serving.refusal import Refusal


@dataclass
class Choice:
    """One reply as far as it has come."""

    index: int
    prompt: int
    """Which prompt of the request it answers; several choices may answer the same."""
    num_prompt_tokens: int = 0
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def take(self, event: Event) -> None:
        """Put in what comes next. Raises: Refusal for a failed job."""
        if isinstance(event, Failed):
            raise Refusal.of(event)
        if isinstance(event, Started):
            self.num_prompt_tokens = event.num_prompt_tokens
        elif isinstance(event, Piece):
            self.pieces.append(event.text)
            self.logprobs += event.logprobs
        else:
            self.finished = event


class ReplyFormat(Protocol):
    """How an API writes replies."""

    media_type: str
    """Of a stream."""

    def opening(self, choice: Choice) -> dict | None:
        """Return what a stream begins a choice with."""

    def piece(self, choice: Choice, piece: Piece) -> dict:
        """Return what a stream says of a step."""

    def ending(self, choice: Choice) -> dict:
        """Return what a stream ends a choice with."""

    def closing(self, choices: list[Choice]) -> list[bytes]:
        """Return the frames after the last choice's end."""

    def frame(self, chunk: dict) -> bytes:
        """Return a chunk as it goes over the wire."""

    def error(self, refusal: Refusal) -> dict:
        """Return what a stream that broke off ends with."""

    def whole(self, choices: list[Choice]) -> dict:
        """Return the response that is not streamed."""
