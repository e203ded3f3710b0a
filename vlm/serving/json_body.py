"""The JSON body of a request, read within bounds and, if it is large, off the event loop."""

import asyncio
import json
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from vlm.errors import shown
from vlm.serving.refusal import Refusal, invalid

MAX_MARKS = 500_000
"""Most brackets and commas of a body. Each may stand for a value of fifty bytes and more; texts have few."""
LARGE_BYTES = 64 * 2**10
"""From here on a body is parsed and read in a thread."""
WINDOW_BYTES = 2**20
_MARKS = (b"[", b"{", b",")

Read = TypeVar("Read")


async def read_object(request: Request, read: Callable[[dict], Read]) -> Read:
    """Return what `read` makes of the JSON object that a request carries.

    Raises: Refusal (400, 415), and what `read` and the request's `receive` raise.
    """
    _check_content_type(request)
    body = bytearray()
    async for block in request.stream():
        body += block

    def value() -> Read:
        found = parse(body)
        if not isinstance(found, dict):
            raise invalid("the body holds no JSON object; expected {...}; send one")
        return read(found)

    return value() if len(body) < LARGE_BYTES else await asyncio.to_thread(value)


def parse(body: bytes | bytearray) -> object:
    """Return the value that `body` spells, strictly by RFC 8259. Raises: Refusal.

    The parser holds Python's lock from beginning to end, in any thread. So what would keep it long is refused first:
    it is quick with long texts (base64) and slow, and greedy for memory, with many small values.
    """
    if _num_marks(body) > MAX_MARKS:
        raise invalid(f"the body has more than {MAX_MARKS} brackets and commas; expected fewer; send less at once")
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise invalid("the body is not UTF-8; expected JSON in UTF-8; encode it so") from None
    except RecursionError:
        raise invalid("the body is nested too deeply; expected a few levels; flatten it") from None
    except json.JSONDecodeError as error:
        raise invalid(f"the body is no JSON: {error.msg} at character {error.pos}; correct it") from None
    except ValueError:
        raise invalid("the body holds a number that JSON has not or that is too long; correct it") from None


def _num_marks(body: bytes | bytearray) -> int:
    """Return how many brackets and commas there are, or any number past the limit; letting others run in between."""
    found = 0
    for start in range(0, len(body), WINDOW_BYTES):
        found += sum(body.count(mark, start, start + WINDOW_BYTES) for mark in _MARKS)
        if found > MAX_MARKS:
            break
    return found


def _no_number(name: str) -> float:
    raise ValueError(name)


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
