"""What is set once for the whole of a server's life: of the model and its process, and of the HTTP side."""

import os
from dataclasses import dataclass
from pathlib import Path

from vlm.errors import VLMError, shown


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
    low_memory: bool | None = None
    adapters: tuple[str, ...] = ()
    num_views: int | None = None
    thin: bool | None = None
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
            _check_integer(name, getattr(self, name), low, or_none=name == "max_new_tokens")
        if not isinstance(self.timeout_s, int | float) or not self.timeout_s > 0:
            raise VLMError("invalid_request", f"timeout_s is {shown(self.timeout_s)}; give seconds above 0")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How the HTTP side behaves."""

    names: tuple[str, ...] = ()
    """What clients may call the model, the first being the one that it is listed under. Empty: the engine's name."""
    api_key_file: Path | None = None
    """A key a line. None: no keys."""
    check_host: bool = False
    """Answer only requests whose Host is an address or localhost; for a server without keys on this machine alone."""
    allow_urls: bool = False
    """Whether images may be http(s) URLs."""
    max_body_bytes: int = 32 * 2**20
    """Largest body of one request."""
    max_bodies_bytes: int | None = None
    """Largest sum of the bodies of all requests that are not answered yet. None: eight of the largest."""
    max_images: int = 16
    """Most images of one request; each takes memory in the model while it is answered."""
    header_timeout_s: float = 10.0
    """Most time for the headers of a request."""
    body_timeout_s: float = 20.0
    """Most time for the body, and more by what came at `min_body_rate`."""
    min_body_rate: int = 16 * 2**10
    """Bytes a second that a slow client must send at least, once `body_timeout_s` is over."""
    drain_s: float = 30.0
    """Most time for requests to end once the server was told to stop."""

    def __post_init__(self):
        for name in ("max_body_bytes", "max_bodies_bytes", "max_images", "min_body_rate"):
            _check_integer(name, getattr(self, name), 1, or_none=name == "max_bodies_bytes")

    @property
    def held_bytes_limit(self) -> int:
        return self.max_bodies_bytes or 8 * self.max_body_bytes


def _check_integer(name: str, value: object, low: int, *, or_none: bool) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not (is_integer and value >= low) and not (or_none and value is None):
        raise VLMError("invalid_request", f"{name} is {shown(value)}; give an integer of at least {low}")
