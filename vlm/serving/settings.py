"""What is set once for the whole of a server's life, apart from the engine's own options."""

from dataclasses import dataclass
from pathlib import Path

from vlm.errors import VLMError, shown


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
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise VLMError("invalid_request", f"{name} is {shown(value)}; expected a whole number of 1 or more")

    @property
    def held_bytes_limit(self) -> int:
        return self.max_bodies_bytes or 8 * self.max_body_bytes
