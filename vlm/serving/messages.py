"""What the server and its worker process say to each other, besides jobs and their events."""

import os
from dataclasses import dataclass
from typing import NamedTuple

from vlm.errors import VLMError, shown
from vlm.serving.job import Event, Job


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which model is served, and how much is asked of it at once."""

    source: str | os.PathLike | None = None
    """As `VLM.from_pretrained` takes it, and the next ones too."""
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    kv_cache_dtype: str = "auto"
    reference: str = "meta"
    allow_urls: bool = False
    num_slots: int = 8
    """Requests that are answered at once."""
    max_queue: int = 32
    """Requests that may wait for a slot."""
    timeout_s: float = 300.0
    """Most time for one request, from when it was taken in to its last token."""
    max_new_tokens: int | None = None
    """Most tokens a request may ask for. None: what the context leaves."""

    def __post_init__(self):
        for name, low in (("num_slots", 1), ("max_queue", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if not (is_integer and value >= low) and not (name == "max_new_tokens" and value is None):
                raise VLMError("invalid_request", f"{name} is {shown(value)}; give an integer of at least {low}")
        if not isinstance(self.timeout_s, int | float) or not self.timeout_s > 0:
            raise VLMError("invalid_request", f"timeout_s is {shown(self.timeout_s)}; give seconds above 0")


# To the worker


class Submit(NamedTuple):
    """Answer this."""

    key: int
    job: Job


class Cancel(NamedTuple):
    """Nobody waits for this one any more."""

    key: int


class Stop(NamedTuple):
    """End the process."""


# From the worker


class Ready(NamedTuple):
    """The model is loaded."""

    info: dict


class Refused(NamedTuple):
    """The model cannot be loaded; another try would end the same way."""

    code: str
    message: str


class ImageCounts(NamedTuple):
    """How the cache of encoded images did."""

    hits: int = 0
    misses: int = 0
    num_bytes: int = 0
    """Held now."""


class Report(NamedTuple):
    """What happened since the last one; without events, a sign of life that answers a `Cancel`."""

    events: list[tuple[int, Event]]
    images: ImageCounts
    """Since the process began."""
