"""One line of the log for each request; never a key, a picture, a prompt or an answer."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm.serving.metrics import Metrics
from vlm.serving.refusal import internal_error

CLIENT_LEFT = 499
"""nginx's status for a request whose client went away before it was answered. It is only logged."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("vlm.serving")
_requests = logging.getLogger("vlm.serving.requests")


class AccessLog:
    """The outermost layer: names, times, counts and logs each request, and answers for what the others let fall.

    What a route knows of its request (`model`, `tokens`, ...) it puts into `scope["access"]`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        answer = _Answer(scope, send)
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:  # noqa: BLE001  a fault of one request is no fault of the server
            _log.error("request %s failed", answer.request_id, exc_info=error)
            if not answer.status:
                await internal_error(answer.request_id).response(scope)(scope, receive, answer.send)
        finally:
            record = answer.record()
            self.metrics.observe(record)
            _requests.info(record)


class _Answer:
    """What became of one request."""

    def __init__(self, scope: Scope, send: Send):
        self._scope, self._send = scope, send
        self._began = time.monotonic()
        scope["access"] = {}
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["access"]["id"] = self.request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            header = (b"x-request-id", self.request_id.encode())
            message["headers"] = [*message.get("headers", []), header]
        await self._send(message)

    def record(self) -> dict:
        """Return the line of the log."""
        scope, noted = self._scope, self._scope["access"]
        left = noted.pop("left", False) or not self.status
        return {
            "id": noted.pop("id"),
            "method": scope["method"][:16],
            # Not the path: where there is no route it is whatever a client wrote, a key perhaps.
            "route": getattr(scope.get("route"), "path", None),
            "status": CLIENT_LEFT if left else self.status,
            "seconds": round(time.monotonic() - self._began, 4),
            **noted,
        }
