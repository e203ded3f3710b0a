"""Any server that speaks OpenAI's chat completions: bounded in what it is asked at once, patient when it is busy."""

import asyncio
import base64
from collections.abc import Iterable, Iterator

from eval.backends import Answer, Asked, Failure, Question, conversation
from eval.backends.server import BadRequest, PatientServer, TryAgain
from eval.records import ImageRef
from vlm.errors import VLMError

DEFAULT_CONCURRENCY = 8
DEFAULT_TIMEOUT_S = 600.0
MAX_TRIES, FIRST_WAIT_S = 6, 0.5
_SIGNATURES = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


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

        generation: temperature, top_p, seed, stop; None are left to the server. timeout_s: of one request; a question
        that hangs is asked twice. The key is read from the environment, OPENAI_API_KEY.
        """
        self._model, self.concurrency, self.max_tries = model, concurrency, max_tries
        self._running: set[asyncio.Task] = set()
        self._config = {name: value for name, value in (generation or {}).items() if value not in (None, ())}
        self._server = PatientServer(
            base_url, concurrency=concurrency, timeout_s=timeout_s, max_tries=max_tries, first_wait_s=first_wait_s
        )

    def __enter__(self) -> "OpenAIBackend":
        self._server.open()
        self._loop = asyncio.new_event_loop()
        return self

    def __exit__(self, *exception) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        for task in self._running - tasks:
            # What was interrupted in the middle of a question; asyncio would complain that nobody asked for it.
            if not task.cancelled():
                task.exception()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._server.close())
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
        return {"backend": "openai", "name": self.name, "base_url": self._server.base_url, "weights": None}

    def answers(self, batches: Iterable[list[Question]]) -> Iterator[Asked]:
        waiting = (question for batch in batches for question in batch)
        while True:
            for question in waiting:
                self._running.add(self._loop.create_task(self._ask(question)))
                if len(self._running) >= self.concurrency:
                    break
            if not self._running:
                return
            finished, self._running = self._loop.run_until_complete(
                asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
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
            text, finish_reason = await self._server.ask("POST", "/chat/completions", _reply, body)
        except TryAgain as last:
            return Asked(question, Failure(reason=f"no answer in {last.tries} tries: {last}"))
        except BadRequest as refused:
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
            names = await self._server.ask("GET", "/models", _model_names)
        except (TryAgain, BadRequest):
            names = []
        if len(names) != 1:
            found = f"{len(names)} models ({', '.join(names[:5]):.120})" if names else "no list of models"
            raise VLMError("invalid_request", f"the server has {found}; expected one; say which with --model")
        return names[0]


def _reply(said: dict) -> tuple[str, str | None]:
    """Return the text of a reply and why it ended."""
    choice = said["choices"][0]
    text, reason = choice["message"]["content"], choice.get("finish_reason")
    if text is None and isinstance(reason, str):
        text = ""  # it ended, and said nothing: a model that thinks was cut off before its answer, or will not answer
    if not isinstance(text, str):
        raise TypeError("a reply without a text")
    return text, reason if isinstance(reason, str) else None


def _model_names(said: dict) -> list[str]:
    return [str(model["id"]) for model in said["data"]]


def _data_url(content: bytes) -> str:
    kind = next((kind for start, kind in _SIGNATURES if content.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
