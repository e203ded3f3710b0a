"""uvicorn with what it lacks: time and size limits for headers, errors as JSON, and an end without broken answers."""

import asyncio
import sys

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from vlm.serving.http.json_text import json_bytes
from vlm.serving.http.limits import MAX_HEADER_BYTES
from vlm.serving.refusal import Refusal
from vlm.serving.settings import ServerSettings

KEEP_ALIVE_S = 75
"""Longer than the proxies' minute, so that they never send into a connection that is being closed."""
FLUSH_S = 5
"""Most time for the last responses to leave, once the engine has nothing to do any more."""


class HTTPServer(uvicorn.Server):
    """Serves an application until SIGTERM or SIGINT; then lets requests end, and leaves.

    While they end, connections are still taken: /ready says 503 and new requests are refused, where a closed door
    would look like a broken machine. A second signal leaves at once.
    """

    def __init__(self, app: ASGIApp, engine, settings: ServerSettings):
        super().__init__(_config(app, settings))
        self._engine, self._drain_s = engine, settings.drain_s
        self.stopped_by: int | None = None
        """The signal that ended it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task | None = None

    async def startup(self, sockets=None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)

    def handle_exit(self, sig: int, frame) -> None:
        is_first, self.stopped_by = self.stopped_by is None, sig
        if is_first and self._loop is not None:
            self._loop.call_soon_threadsafe(self.begin_drain)
        else:
            self.should_exit = self.force_exit = True

    def begin_drain(self) -> None:
        """Let requests end, then stop. To be called in the server's own loop."""
        if self._draining is None:
            self._draining = self._loop.create_task(self._drain())

    async def on_tick(self, counter: int) -> bool:
        """Leave where there will never be a model. uvicorn calls this ten times a second."""
        return self._engine.failure is not None or await super().on_tick(counter)

    async def _drain(self) -> None:
        try:
            await self._engine.drain(self._drain_s)
        finally:
            self.should_exit = True


class BoundedProtocol(H11Protocol):
    """One connection. `header_timeout_s` is set by `_config`."""

    header_timeout_s: float
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._stop_header_timer()
        elif self.conn.trailing_data[0]:
            self._start_header_timer()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: uvicorn would advise to install a WebSocket library, for which there is no use here."""

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP. Called while the parser's error is handled, whose hint tells 431 from 400."""
        error = sys.exception()
        if getattr(error, "error_status_hint", 400) == 431:
            limit = f"expected at most {MAX_HEADER_BYTES} bytes in all"
            self._refuse(Refusal(431, "headers_too_large", f"the headers are too long; {limit}; send fewer"))
        else:
            self._refuse(Refusal(400, "invalid_http", "the request is no proper HTTP/1.1; correct its first lines"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer in place of the application, and close."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json_bytes(refusal.openai())
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            phrase = STATUS_PHRASES[refusal.status]
            response = h11.Response(status_code=refusal.status, headers=headers, reason=phrase)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self._headers_are_late)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        self._header_timer = None
        if self.conn.their_state is h11.IDLE:
            self._refuse(Refusal(408, "request_timeout", "the headers did not arrive in time; send them at once"))


def _config(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    protocol = type("Protocol", (BoundedProtocol,), {"header_timeout_s": settings.header_timeout_s})
    return uvicorn.Config(
        app,
        http=protocol,
        # Whatever else is installed, what runs is what is tested.
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing here depends on where a client is; so nobody can pretend to be elsewhere.
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=FLUSH_S,
    )
