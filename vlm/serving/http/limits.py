"""Bounds on what one request may send: headers, body, and the time for both. Pure ASGI, before anything is read.

The time for headers is kept by `vlm.serving.http.server`, for a request whose headers are not whole is none yet.
"""

import asyncio
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm.serving.refusal import Refusal
from vlm.serving.settings import ServerSettings

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 2**10
LINGER_S = 2.0
"""How long a client that was refused may go on sending before the connection is closed under it."""


class RequestLimits:
    """Passes a request on with a `receive` that counts, and a `send` that ends what was not read in full."""

    def __init__(self, app: ASGIApp, settings: ServerSettings):
        self.app, self.settings = app, settings
        self.held_bytes = 0
        """Of the bodies of all requests that are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _Body(self, scope, receive, send)
        try:
            if (refusal := _too_many_headers(scope["headers"])) is not None:
                return await refusal.response(scope)(scope, body.receive, body.send)
            await self.app(scope, body.receive, body.send)
        finally:
            self.held_bytes -= body.num_bytes


class _Body:
    """The body of one request while it arrives."""

    def __init__(self, limits: RequestLimits, scope: Scope, receive: Receive, send: Send):
        self.limits, self.settings = limits, limits.settings
        self._scope, self._receive, self._send = scope, receive, send
        self._headers = dict(scope["headers"])
        self.num_bytes = 0
        self._began: float | None = None
        self._is_whole = not (int(self._headers.get(b"content-length", b"0")) or b"transfer-encoding" in self._headers)

    async def receive(self) -> Message:
        """Return what comes next. Raises: Refusal (408, 413, 415, 503), ClientDisconnect."""
        if self._is_whole:
            return await self._receive()
        if self._began is None:
            self._began = time.monotonic()
            self._check_announced()
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._time_left_s()):
                message = await self._receive()
        except TimeoutError:
            found = f"the body did not arrive in time ({self.num_bytes} bytes did)"
            raise Refusal(408, "request_timeout", f"{found}; expected it faster; send less or send it again") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._is_whole = not message.get("more_body", False)
        self._count(len(message.get("body", b"")))
        return message

    async def send(self, message: Message) -> None:
        """Send on; where the body was not read to its end, close the connection after the response."""
        if self._is_whole:
            return await self._send(message)
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            return await self._send(message)
        is_last = not message.get("more_body", False)
        await self._send({**message, "more_body": True})
        if is_last:
            # Closed at once, what the client still sends would make its system throw the response away.
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        num_bytes = 0
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and self._began is None:
            return
        try:
            async with asyncio.timeout(LINGER_S):
                while num_bytes <= self.settings.max_body_bytes:
                    message = await self._receive()
                    num_bytes += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            pass

    def _check_announced(self) -> None:
        encoding = self._headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b""):
            raise Refusal(415, "unsupported_media_type", "the body is compressed; expected it as it is; send it so")
        if int(self._headers.get(b"content-length", b"0")) > self.settings.max_body_bytes:
            raise self._too_large()

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self.limits.held_bytes += num_bytes
        if self.num_bytes > self.settings.max_body_bytes:
            raise self._too_large()
        if self.limits.held_bytes > self.settings.held_bytes_limit:
            message = "the server holds as much of other requests as it can; expected less at once; try again soon"
            raise Refusal(503, "overloaded", message, headers={"retry-after": "1"})

    def _time_left_s(self) -> float:
        allowed_s = self.settings.body_timeout_s + self.num_bytes / self.settings.min_body_rate
        return self._began + allowed_s - time.monotonic()

    def _too_large(self) -> Refusal:
        limit = self.settings.max_body_bytes
        message = f"the body has more than {limit} bytes, the limit; send smaller images (--max-body-mb raises it)"
        return Refusal(413, "request_too_large", message)


def _too_many_headers(headers: list[tuple[bytes, bytes]]) -> Refusal | None:
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) <= MAX_HEADERS and size <= MAX_HEADER_BYTES:
        return None
    found = f"the request has {len(headers)} headers of {size} bytes"
    limits = f"expected at most {MAX_HEADERS} of {MAX_HEADER_BYTES} in all"
    return Refusal(431, "headers_too_large", f"{found}; {limits}; send fewer", headers={"connection": "close"})
