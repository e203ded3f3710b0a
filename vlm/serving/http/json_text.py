"""JSON as the server writes it."""

import json

from starlette.responses import Response

_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What JSON may hold as it is, and clients that read a stream line by line (httpx) take for the end of a line."""


def json_bytes(value: object) -> bytes:
    """Return `value` as one line of JSON in UTF-8; a lone surrogate, which has no place there, becomes a question mark.

    Raises: ValueError for a number that JSON has not.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter, escape in _LINE_ENDS.items():
        text = text.replace(letter, escape)
    return text.encode("utf-8", "replace")


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response that no browser takes for anything else, and nobody keeps."""
    fixed = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
    return Response(json_bytes(content), status, {**fixed, **(headers or {})}, media_type="application/json")
