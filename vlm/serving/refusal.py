"""What the server says when it does not answer: one error type, and its shape in OpenAI's and in Ollama's API."""

from starlette.responses import Response
from starlette.types import Scope

from vlm.errors import MAX_MESSAGE_CHARS, VLMError, shown
from vlm.serving.http.json_text import json_response
from vlm.serving.model_process.job import Failed

_STATUS = {
    "internal_error": 500,
    "checkpoint_invalid": 500,
    "device_unavailable": 503,
    "worker_lost": 503,
    "timed_out": 504,
}
"""Of a failed job, by its code. What is not here is the client's to change: 400."""

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered, with all that its response needs."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.message = message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"
        self.headers = headers or {}

    @classmethod
    def of(cls, error: VLMError | Failed, *, param: str | None = None) -> "Refusal":
        """Return what a request is told whose job failed, or could not be built."""
        return cls(_STATUS.get(error.code, 400), error.code, error.message, param=param)

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def content(self, scope: Scope) -> dict:
        """Return the error as the API that `scope` belongs to writes it."""
        if scope["path"].startswith("/api/"):
            return {"error": self.message}
        return self.openai()

    def openai(self) -> dict:
        """Return the error in OpenAI's form."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self, scope: Scope) -> Response:
        """Return the whole response."""
        scope.setdefault("access", {})["error"] = self.code
        return json_response(self.content(scope), self.status, self.headers)


def invalid(message: str, param: str | None = None) -> Refusal:
    """Return the refusal of a request that is not as it should be."""
    return Refusal(400, "invalid_request", message, param=param)


def no_route(method: str, path: str) -> Refusal:
    """Return the refusal of a route that is not offered."""
    return Refusal(404, "not_found", f"there is no {shown(method)} {shown(path)}; docs/serving.md lists what there is")


def wrong_method(method: str, allowed: str) -> Refusal:
    """Return the refusal of a method that a route does not have."""
    message = f"the method is {shown(method)}; this route takes {allowed}"
    return Refusal(405, "method_not_allowed", message, headers={"allow": allowed})


def internal_error(request_id: str) -> Refusal:
    """Return what a client is told of a fault of the server's own: nothing but where to look."""
    return Refusal(500, "internal_error", f"the server failed; its log says more under request {request_id}")
