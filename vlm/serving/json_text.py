"""JSON as the server writes it."""

import json

from starlette.responses import Response


def json_bytes(value: object) -> bytes:
    """Return `value` as JSON in UTF-8; a lone surrogate, which UTF-8 has no place for, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response that no browser takes for anything else, and nobody keeps."""
    fixed = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
    return Response(json_bytes(content), status, {**fixed, **(headers or {})}, media_type="application/json")
