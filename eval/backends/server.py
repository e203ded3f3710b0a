"""A server that is asked patiently: again while it is busy or talks nonsense, bounded in how much at once."""

import asyncio
import email.utils
import json
import math
import os
import random
import time
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

from vlm.errors import VLMError
from vlm.packages import needed

CONNECT_TIMEOUT_S = 10.0
MAX_WAIT_S, MAX_RETRY_AFTER_S = 30.0, 300.0
KEY_VARIABLE = "OPENAI_API_KEY"
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
MAX_SILENCES = 2
"""Of one question: it may be the question that hangs."""
_REFUSED = frozenset({401, 403, 404, 405})
"""What the server says of the run and not of one question: key, model or address."""


class TryAgain(Exception):
    """The server may answer later; `wait_s` is how long it asked for, if it did."""

    tries = 1
    """How often it was asked."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


class Unreachable(TryAgain):
    """There was no connection."""


class Silent(TryAgain):
    """Nothing came in time."""


class BadRequest(Exception):
    """The server will not answer this question however often it is asked."""


class PatientServer:
    """A connection to a server at `base_url`; the key is read from the environment."""

    def __init__(self, base_url: str, *, concurrency: int, timeout_s: float, max_tries: int, first_wait_s: float):
        self.base_url, self.concurrency, self.timeout_s = _checked_url(base_url), concurrency, timeout_s
        self.max_tries, self.first_wait_s = max_tries, first_wait_s

    def open(self) -> None:
        """Make ready to ask. Raises: VLMError where httpx is not installed."""
        httpx = needed("httpx", "--backend openai")
        key = os.environ.get(KEY_VARIABLE)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=self.concurrency),
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def ask(self, method: str, path: str, read: Callable, body: dict | None = None):
        """Return what `read` makes of the server's JSON, asking again while it is busy or talks nonsense.

        Raises: TryAgain with the last reason; BadRequest; VLMError where no question could be answered.
        """
        num_silences = 0
        for number in range(1, self.max_tries + 1):
            try:
                return await self._once(method, path, read, body)
            except TryAgain as reason:
                last, last.tries = reason, number
            num_silences += isinstance(last, Silent)
            if number == self.max_tries or num_silences == MAX_SILENCES:
                break
            wait_s = min(MAX_WAIT_S, self.first_wait_s * 2 ** (number - 1)) * random.uniform(0.5, 1)
            await asyncio.sleep(wait_s if last.wait_s is None else last.wait_s)
        if isinstance(last, Unreachable):
            raise VLMError(
                "device_unavailable", f"{self.base_url:.100} cannot be reached ({last}); start it and resume"
            )
        raise last

    async def _once(self, method: str, path: str, read: Callable, body: dict | None):
        import httpx

        # ASCII also holds what UTF-8 cannot: a question may have half of a surrogate pair.
        content = None if body is None else json.dumps(body).encode("ascii")
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._client.request(method, self.base_url + path, content=content, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(type(error).__name__) from None
        except TimeoutError:
            raise Silent(f"nothing came within {self.timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise TryAgain(f"the connection broke ({type(error).__name__})") from None
        status = response.status_code
        if status in _BUSY:
            raise TryAgain(f"status {status}: {_message(response)}", retry_after_s(response.headers))
        if status in _REFUSED:
            raise VLMError(
                "invalid_request",
                f"the server refused with status {status}: {_message(response)}; check --base-url, --model and "
                f"{KEY_VARIABLE}",
            )
        if status != 200:
            raise BadRequest(f"the server refused with status {status}: {_message(response)}")
        try:
            return read(response.json())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise TryAgain("its answer is not what OpenAI's servers send") from None


def retry_after_s(headers) -> float | None:
    """Return the seconds that a Retry-After asks for, given as a number or a date."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def _message(response) -> str:
    """Return what the server says is wrong, on one short line."""
    try:
        text = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        text = response.text
    return " ".join(str(text).split())[:120] or "without a word"


def _checked_url(base_url: str) -> str:
    """Return the address without its end slash and without a password."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise VLMError("invalid_request", f"base URL is {base_url[:60]!r}; expected one as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise VLMError("invalid_request", f"the base URL holds a password; put the key into {KEY_VARIABLE} instead")
    return urlunsplit(parts).rstrip("/")
