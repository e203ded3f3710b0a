"""The values that cross the pipe between the server and its worker: a request, and what comes back piece by piece."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from vlm.generation.reply import Timings
from vlm.generation.sampling import GenerationConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request. The worker reads it: nothing in it was tokenised, opened or fetched before."""

    messages: list[dict] | None = None
    """A conversation in OpenAI's form; image parts carry `data:` URLs, or `http(s)` ones where the server allows it."""
    parts: list | None = None
    """A raw completion instead: texts and images, as `VLM.complete` takes them."""
    config: GenerationConfig
    continue_final: bool = False
    """Go on with the last message, which is the assistant's."""
    top_logprobs: int | None = None
    """None: no log-probabilities; else for each token those of so many alternatives."""


class TokenLogprob(NamedTuple):
    """How likely a token was at temperature 1, before filters."""

    token: str
    token_bytes: bytes
    logprob: float
    top: list[tuple[str, bytes, float]]
    """The likeliest tokens in its place, likeliest first."""


@dataclass(frozen=True)
class Started:
    """The request was read and takes part in the running batch."""

    num_prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """What one step added. `text` is empty while a character, or what may be a stop text, is incomplete."""

    text: str
    logprobs: list[TokenLogprob]


@dataclass(frozen=True)
class Finished:
    """The reply is whole. No event follows."""

    finish_reason: Literal["stop", "length"]
    num_tokens: int
    confidence: float
    timings: Timings
    token_ids: list[int]


@dataclass(frozen=True)
class Failed:
    """There is no reply, or no more of it. No event follows."""

    code: str
    """That of a `VLMError`, or "worker_lost" (the process died), "timed_out", or "internal_error" (a fault of ours)."""
    message: str


Event = Started | Piece | Finished | Failed


class QueueFull(Exception):
    """All slots are taken and no more requests may wait."""


class Draining(Exception):
    """The server is about to stop and takes no new requests."""
