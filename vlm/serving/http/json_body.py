"""The JSON body of a request, read within bounds and, if it is large, off the event loop."""

import asyncio
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request

from vlm.errors import shown
from vlm.serving.refusal import Refusal, invalid

MAX_MARKS = 500_000
"""Most brackets and commas of a body. Each may stand for a value of fifty bytes and more; texts have few."""
LARGE_BYTES = 64 * 2**10
"""From here on a body is parsed and read in a thread, after those that came before."""
WINDOW_BYTES = 2**20
MAX_LONE_SURROGATES = 1000
"""Most that are mended: each costs a thousand times what a letter does."""
_MARKS = (b"[", b"{", b",")
# A half of a pair without the other, as an escape.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)

Read = TypeVar("Read")


class BodyReader:
    """Reads the bodies of one server's requests, of the large ones one at a time.

    A text with an emoji in it takes four bytes for each of its letters: read together, large bodies would take
    several times the memory that they were let in with.
    """

    def __init__(self):
        self._turn = asyncio.Lock()

    async def read_object(self, request: Request, read: Callable[[dict], Read]) -> Read:
        """Return what `read` makes of the JSON object that a request carries.

        Raises: Refusal (400, 415), and what `read` and the request's `receive` raise.
        """
        _check_content_type(request)
        body = bytearray()
        async for block in request.stream():
            body += block
        if len(body) < LARGE_BYTES:
            return _read(body, read)
        async with self._turn:
            return await asyncio.to_thread(_read, body, read)


def _read(body: bytearray, read: Callable[[dict], Read]) -> Read:
    found = parse(body)
    if not isinstance(found, dict):
        raise invalid("the body holds no JSON object; expected {...}; send one")
    return read(found)


def parse(body: bytes | bytearray) -> object:
    """Return the value that `body` spells, strictly by RFC 8259; U+FFFD for a lone surrogate. Raises: Refusal.

    The parser holds Python's lock from beginning to end, in any thread. So what would keep it long is refused first:
    it is quick with long texts (base64) and slow, and greedy for memory, with many small values.
    """
    if _num_marks(body) > MAX_MARKS:
        raise invalid(f"the body has more than {MAX_MARKS} brackets and commas; expected fewer; send less at once")
    try:
        return _decoded(body)
    except UnicodeDecodeError:
        raise invalid("the body is not UTF-8; expected JSON in UTF-8; encode it so") from None
    except RecursionError:
        raise invalid("the body is nested too deeply; expected a few levels; flatten it") from None
    except msgspec.ValidationError:
        raise invalid("the body holds a number that is too large; expected what 64 bits can hold; correct it") from None
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise invalid(f"the body is no JSON: {reason}; correct it") from None


def _decoded(body: bytes | bytearray) -> object:
    """Return what `body` spells, straight from bytes: as one text with an emoji it would take four times as much.

    Raises: msgspec.DecodeError, UnicodeDecodeError, RecursionError.
    """
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        if b"\0" in body or not _LONE_SURROGATE.search(body):
            raise
    # Escaped backslashes stand aside meanwhile, behind a byte that no JSON holds.
    mended = _LONE_SURROGATE.sub(rb"\\ufffd", body.replace(rb"\\", b"\0\0"), count=MAX_LONE_SURROGATES)
    return msgspec.json.decode(mended.replace(b"\0\0", rb"\\"))


def _num_marks(body: bytes | bytearray) -> int:
    """Return how many brackets and commas there are, or any number past the limit; letting others run in between."""
    found = 0
    for start in range(0, len(body), WINDOW_BYTES):
        found += sum(body.count(mark, start, start + WINDOW_BYTES) for mark in _MARKS)
        if found > MAX_MARKS:
            break
    return found


def _check_content_type(request: Request) -> None:
    """Refuse what a page of another site can make a browser send without leave: any type but this one.

    Browsers say in each POST where it comes from. To all others the type is a formality, and curl's is of a form.
    """
    if not any(name in request.headers for name in ("origin", "sec-fetch-site")):
        return
    found = request.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(
            415,
            "unsupported_media_type",
            f"the content-type is {shown(found)}; expected application/json from a web page; set it in the page",
        )
