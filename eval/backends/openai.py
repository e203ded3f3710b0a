"""Any server that speaks OpenAI's chat completions: bounded in what it is asked at once, patient when it is busy."""

import asyncio
import base64
import email.utils
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlsplit, urlunsplit

from eval.backends import Answer, Asked, Failure, Question, conversation
from eval.records import ImageRef
from vlm.errors import VLMError

DEFAULT_CONCURRENCY = 8
DEFAULT_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 10.0
MAX_TRIES = 6
FIRST_WAIT_S, MAX_WAIT_S, MAX_RETRY_AFTER_S = 0.5, 30.0, 300.0
KEY_VARIABLE = "OPENAI_API_KEY"
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({401, 403, 404, 405})
"""What the server says of the run and not of one question: key, model or address."""
_SIGNATURES = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


class _TryAgain(Exception):
    """The server may answer later; `wait_s` is how long it asked for, if it did."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


class _Unreachable(_TryAgain):
    """There was no connection."""


class OpenAIBackend:
    """Answers by asking a server, several questions at once.

    A busy or failing server is asked again, after the time it names or longer and longer waits; what it fails to
    answer `max_tries` times is a failure of that question. A server that cannot be reached, or that refuses the key or
    the model, stops the run, which can be resumed.
    """

    batch_size = 1

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        generation: dict | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_tries: int = MAX_TRIES,
        first_wait_s: float = FIRST_WAIT_S,
    ):
        """base_url: as ".../v1". model: None takes the server's only one.

        generation: temperature, top_p, seed, stop; None are left to the server. timeout_s: of one request.
        The key is read from the environment, OPENAI_API_KEY.
        """
        self.base_url, self._model = _checked_url(base_url), model
        self._config = {name: value for name, value in (generation or {}).items() if value not in (None, ())}
        self.concurrency, self.timeout_s = concurrency, timeout_s
        self.max_tries, self.first_wait_s = max_tries, first_wait_s

    def __enter__(self) -> "OpenAIBackend":
        try:
            import httpx
        except ImportError:
            raise VLMError(
                "invalid_request", "--backend openai needs httpx, which is not installed; pip install httpx"
            ) from None
        key = os.environ.get(KEY_VARIABLE)
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=self.concurrency),
        )
        return self

    def __exit__(self, *exception) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()

    @property
    def name(self) -> str:
        if self._model is None:
            self._model = self._loop.run_until_complete(self._only_model())
        return self._model

    @property
    def generation(self) -> dict:
        return {**self._config, "likelihood": None}

    def describe(self) -> dict:
        return {"backend": "openai", "name": self.name, "base_url": self.base_url, "weights": None}

    def answers(self, batches: Iterable[list[Question]]) -> Iterator[Asked]:
        waiting = (question for batch in batches for question in batch)
        running: set[asyncio.Task] = set()
        while True:
            for question in waiting:
                running.add(self._loop.create_task(self._ask(question)))
                if len(running) >= self.concurrency:
                    break
            if not running:
                return
            finished, running = self._loop.run_until_complete(
                asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            )
            # First what can be written down, then what ends the run.
            failed = [task for task in finished if task.exception() is not None]
            for task in finished:
                if task.exception() is None:
                    yield task.result()
            if failed:
                raise failed[0].exception()

    async def _ask(self, question: Question) -> Asked:
        try:
            body = self._body(question)
        except VLMError as error:
            return Asked(question, Failure(reason=f"{error.message} [{error.code}]"))
        try:
            text, finish_reason = await self._patiently("POST", "/chat/completions", _reply, body)
        except _TryAgain as last:
            return Asked(question, Failure(reason=f"no answer in {self.max_tries} tries: {last}"))
        except _BadRequest as refused:
            return Asked(question, Failure(reason=str(refused)))
        return Asked(question, Answer(text=text, finish_reason=finish_reason))

    def _body(self, question: Question) -> dict:
        """Return a request. Raises: VLMError where an image cannot be read."""
        prompt = question.prompt

        def image_part(image: ImageRef) -> dict:
            return {"type": "image_url", "image_url": {"url": _data_url(image.read())}}

        body = {
            "model": self.name,
            "messages": conversation(prompt, image_part),
            "max_tokens": prompt.max_new_tokens,
            **self._config,
        }
        if prompt.prefill:
            # As vLLM and SGLang take it; others would write a new turn after the half-written one.
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    async def _only_model(self) -> str:
        try:
            names = await self._patiently("GET", "/models", _model_names)
        except (_TryAgain, _BadRequest):
            names = []
        if len(names) != 1:
            found = f"{len(names)} models ({', '.join(names[:5]):.120})" if names else "no list of models"
            raise VLMError("invalid_request", f"the server has {found}; expected one; say which with --model")
        return names[0]

    async def _patiently(self, method: str, path: str, read: Callable, body: dict | None = None):
        """Return what `read` makes of the server's JSON, asking again while it is busy or talks nonsense.

        Raises: _TryAgain with the last reason; _BadRequest; VLMError where no question could be answered.
        """
        for number in range(1, self.max_tries + 1):
            try:
                return await self._once(method, path, read, body)
            except _TryAgain as reason:
                last = reason
            if number < self.max_tries:
                wait_s = min(MAX_WAIT_S, self.first_wait_s * 2 ** (number - 1)) * random.uniform(0.5, 1)
                await asyncio.sleep(wait_s if last.wait_s is None else last.wait_s)
        if isinstance(last, _Unreachable):
            raise VLMError(
                "device_unavailable", f"{self.base_url:.100} cannot be reached ({last}); start it and resume"
            )
        raise last

    async def _once(self, method: str, path: str, read: Callable, body: dict | None):
        import httpx

        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._client.request(method, self.base_url + path, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Unreachable(type(error).__name__) from None
        except TimeoutError:
            raise _TryAgain(f"nothing came within {self.timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise _TryAgain(f"the connection broke ({type(error).__name__})") from None
        status = response.status_code
        if status in _BUSY:
            raise _TryAgain(f"status {status}: {_message(response)}", _retry_after_s(response.headers))
        if status in _REFUSED:
            raise VLMError(
                "invalid_request",
                f"the server refused with status {status}: {_message(response)}; check --base-url, --model and "
                f"{KEY_VARIABLE}",
            )
        if status != 200:
            raise _BadRequest(f"the server refused with status {status}: {_message(response)}")
        try:
            return read(response.json())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _TryAgain("its answer is not what OpenAI's servers send") from None


class _BadRequest(Exception):
    """The server will not answer this question however often it is asked."""


def _reply(said: dict) -> tuple[str, str | None]:
    """Return the text of a reply and why it ended."""
    choice = said["choices"][0]
    text, reason = choice["message"]["content"], choice.get("finish_reason")
    if not isinstance(text, str):
        raise TypeError("a reply without a text")
    return text, reason if isinstance(reason, str) else None


def _model_names(said: dict) -> list[str]:
    return [str(model["id"]) for model in said["data"]]


def _data_url(content: bytes) -> str:
    kind = next((kind for start, kind in _SIGNATURES if content.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _retry_after_s(headers) -> float | None:
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
