"""What stands before the page on the network: only what the page needs passes, and nothing large.

Gradio itself also records screens, edits its own program, fetches URLs and serves other apps: none of that is within
reach. It is decided on the path that the server routes by, never on a header. Headers tell only whether it is a page of
another site that asks.
"""

import json
import math
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from vlm.loopback import names_this_machine

PAGE_PATHS = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)/[\w./-]+"
    r"|/gradio_api/(startup-events|app_id|queue/data|upload_progress|heartbeat/\w+|file=.+)"
)
CALL_PATHS = re.compile(r"/gradio_api/(queue/join|run/predict|cancel|reset|upload)/?")
FUNCTION_PATHS = re.compile(r"/gradio_api/(queue/join|run/predict)/?")
UPLOAD_PATH = "/gradio_api/upload"
FILE_PATH = "/gradio_api/file="

MAX_CALL_BYTES = 2**20
MAX_FILE_BYTES = 10 * 2**20
MAX_UPLOAD_BYTES = 4 * MAX_FILE_BYTES + 2**16
MAX_FOLDER_BYTES = 2 * 2**30

# Whatever ends up on the page, it can reach this server alone.
PAGE_POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    b"form-action 'self'; frame-ancestors 'self'"
)
FILE_POLICY = b"default-src 'none'; sandbox"


class TurnedAway(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Guard:
    """An ASGI layer around the page's server."""

    def __init__(
        self,
        app,
        *,
        folder: str | Path,
        functions: Collection[int] = (),
        check_host: bool = False,
        max_folder_bytes: int = MAX_FOLDER_BYTES,
    ):
        """Stand before `app`.

        folder: holds all that was uploaded or made; nothing outside it is served or read.
        functions: indices of what the page may call.
        check_host: answer only requests to a name of this machine, for a page that is meant for it alone.
        """
        self._app, self._functions, self._check_host = app, functions, check_host
        self._folder = Path(folder).resolve()
        self._max_folder_bytes = max_folder_bytes

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            if scope["type"] != "http":
                raise TurnedAway(404, "not found")
            receive = await self._checked(scope, receive)
        except TurnedAway as refusal:
            await _refuse(scope, send, refusal)
            return
        # Gradio fails on most ways of asking for parts of a file, and the page asks for none: it is given whole.
        scope = scope | {"headers": [header for header in scope["headers"] if header[0] != b"range"]}
        policy = FILE_POLICY if scope["path"].startswith(FILE_PATH) else PAGE_POLICY
        await self._app(scope, receive, _with_headers(send, policy))

    async def _checked(self, scope, receive):
        """Return what gives the request's body. Raises: TurnedAway."""
        path = scope["path"]
        if self._check_host and not names_this_machine(scope["headers"]):
            raise TurnedAway(403, "the Host is not this machine; ask it as localhost")
        if scope["method"] in ("GET", "HEAD"):
            if not PAGE_PATHS.fullmatch(path) or ".." in path:
                raise TurnedAway(404, "not found")
            if path.startswith(FILE_PATH) and not self._holds(path.removeprefix(FILE_PATH)):
                raise TurnedAway(404, "not found")
            return receive
        if scope["method"] != "POST" or not CALL_PATHS.fullmatch(path):
            raise TurnedAway(404, "not found")
        if not _is_from_the_page(scope["headers"]):
            raise TurnedAway(403, "a page of another site asked; open this one")
        if path.startswith(UPLOAD_PATH):
            _check_length(scope, MAX_UPLOAD_BYTES)
            if sum(_sizes(self._folder)) > self._max_folder_bytes:
                raise TurnedAway(503, "the room for pictures is used up; try again in an hour")
            return receive
        _check_length(scope, MAX_CALL_BYTES)
        body = await _whole_body(receive)
        call = self._checked_call(body)
        if FUNCTION_PATHS.fullmatch(path) and not self._is_function(call):
            raise TurnedAway(400, "fn_index is none of this page's functions")
        return _given_again(body, receive)

    def _checked_call(self, body: bytes) -> object:
        """Return a call, unless it names a file which was not uploaded here, or a URL as a file. Raises: TurnedAway."""
        try:
            call = json.loads(body) if body else None
        except (ValueError, RecursionError):
            raise TurnedAway(400, "the body is no JSON") from None
        pending = [call]
        while pending:
            value = pending.pop()
            # Python reads NaN, Infinity and 1e999, and Gradio fails on them.
            if isinstance(value, float) and not math.isfinite(value):
                raise TurnedAway(400, "the body holds a number that JSON has not")
            if isinstance(value, dict):
                if isinstance(value.get("path"), str) and not self._holds(value["path"]):
                    raise TurnedAway(403, "a file was named that was not uploaded here")
                pending += value.values()
            elif isinstance(value, list):
                pending += value
        return call

    def _is_function(self, call: object) -> bool:
        index = call.get("fn_index") if isinstance(call, dict) else None
        return isinstance(index, int) and not isinstance(index, bool) and index in self._functions

    def _holds(self, path: str) -> bool:
        """Tell whether `path` is a file in the folder, whatever links it goes through."""
        try:
            return (
                Path(path).is_absolute()
                and (real := Path(path).resolve()).is_relative_to(self._folder)
                and real.is_file()
            )
        except (OSError, ValueError):
            return False


def _is_from_the_page(headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request may come from the page itself: a browser says with each POST whose page it is from.

    The page has the name that it was asked by, or that a proxy was, which no other site's page can pretend.
    """
    named = {name: value.lower() for name, value in headers}
    if b"origin" not in named:
        return True
    _, _, host = named[b"origin"].partition(b"://")
    return bool(host) and host in (named.get(b"host"), named.get(b"x-forwarded-host"))


def _check_length(scope, limit: int) -> None:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    if len(lengths) != 1 or not lengths[0].isdigit():
        raise TurnedAway(411, "the request does not say how long it is")
    if int(lengths[0]) > limit:
        raise TurnedAway(413, f"the request is larger than {limit} bytes")


async def _whole_body(receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _given_again(body: bytes, receive):
    """Return what gives `body` once, then whatever the client does next."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again():
        return pending.pop() if pending else await receive()

    return again


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue  # deleted meanwhile
        yield status.st_size if stat.S_ISREG(status.st_mode) else 0


def _with_headers(send, policy: bytes):
    async def sending(message) -> None:
        if message["type"] == "http.response.start":
            message = message | {
                "headers": [
                    *message.get("headers", []),
                    (b"content-security-policy", policy),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            }
        await send(message)

    return sending


async def _refuse(scope, send, refusal: TurnedAway) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps({"detail": refusal.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
