"""From the jobs of one request to its response, whole or streamed."""

import time
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vlm.serving.http.json_text import json_response
from vlm.serving.jobs_of_request import ClientLeft, running
from vlm.serving.model_process.job import Event, Finished, Job, Piece, Started
from vlm.serving.refusal import Refusal, internal_error
from vlm.serving.reply_format import Choice, ReplyFormat


class GenerationResponse(Response):
    """Runs jobs and writes what comes of them."""

    def __init__(self, engine, jobs: Sequence[Job], format: ReplyFormat, *, prompts: Sequence[int], stream: bool):
        """prompts: which of the request's prompts each of `jobs` answers."""
        self.background = None
        self._engine, self._jobs, self._format, self._stream = engine, jobs, format, stream
        self._choices = [Choice(index, prompt) for index, prompt in enumerate(prompts)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        noted, began = scope["access"], time.monotonic()
        try:
            async with running(self._engine, self._jobs, receive) as events:
                events = self._noting(events, noted, began)
                if self._stream:
                    await self._write_stream(events, noted, send)
                else:
                    async for choice, event in events:
                        choice.take(event)
                    await json_response(self._format.whole(self._choices))(scope, receive, send)
        except ClientLeft:
            noted["left"] = True

    async def _noting(self, events, noted: dict, began: float) -> AsyncIterator[tuple[Choice, Event]]:
        """Yield (choice, event), and note for the log how far it came."""
        noted.update(prompt_tokens=0, tokens=0)
        async for index, event in events:
            choice = self._choices[index]
            if isinstance(event, Started):
                noted["prompt_tokens"] += event.num_prompt_tokens
            elif isinstance(event, Piece):
                noted.setdefault("first_token_s", round(time.monotonic() - began, 4))
            elif isinstance(event, Finished):
                noted["tokens"] += event.num_tokens
                noted["finish_reason"] = event.finish_reason
            yield choice, event

    async def _write_stream(self, events, noted: dict, send: Send) -> None:
        """Write events as they come; what fails before the first gets a status of its own."""
        is_open = False
        try:
            async for choice, event in events:
                frames = self._frames(choice, event)
                if not is_open:
                    await send(_stream_start(self._format.media_type))
                    is_open = True
                for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            for frame in self._format.closing(self._choices):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except Exception as error:
            if not is_open or isinstance(error, ClientLeft):
                raise
            refusal = error if isinstance(error, Refusal) else internal_error(noted["id"])
            noted["error"] = refusal.code
            frame = self._format.frame(self._format.error(refusal))
            await send({"type": "http.response.body", "body": frame, "more_body": False})
            if refusal is not error:
                raise
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _frames(self, choice: Choice, event: Event) -> list[bytes]:
        """Return what the stream says of an event. Raises: Refusal."""
        choice.take(event)
        chunk = None
        if isinstance(event, Started):
            chunk = self._format.opening(choice)
        elif isinstance(event, Piece) and (event.text or event.logprobs):
            chunk = self._format.piece(choice, event)
        elif isinstance(event, Finished):
            chunk = self._format.ending(choice)
        return [] if chunk is None else [self._format.frame(chunk)]


def _stream_start(media_type: str) -> dict:
    headers = {
        "content-type": media_type,
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        # nginx would collect the pieces and pass them on together.
        "x-accel-buffering": "no",
    }
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": encoded}
