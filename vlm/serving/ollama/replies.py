"""Replies as Ollama writes them: one JSON object, or a line of JSON for each step."""

import datetime
import time

from vlm.serving.http.json_text import json_bytes
from vlm.serving.model_process.job import Finished, Piece, TokenLogprob
from vlm.serving.openai.replies import logprob_entries
from vlm.serving.refusal import Refusal
from vlm.serving.reply_format import Choice

_NANOSECONDS = 10**9


class _OllamaFormat:
    """What chat and generate share: they differ in where the text stands."""

    media_type = "application/x-ndjson"

    def __init__(self, model: str, *, with_logprobs: bool):
        self.model, self.with_logprobs = model, with_logprobs
        self._began = time.monotonic()

    def opening(self, choice: Choice) -> None:
        return None

    def piece(self, choice: Choice, piece: Piece) -> dict:
        return self._said(piece.text, done=False) | self._logprobs(piece.logprobs)

    def ending(self, choice: Choice) -> dict:
        return self._said("", done=True) | self._ended(choice, choice.finished)

    def closing(self, choices: list[Choice]) -> list[bytes]:
        return []

    def frame(self, chunk: dict) -> bytes:
        return json_bytes(chunk) + b"\n"

    def error(self, refusal: Refusal) -> dict:
        return {"error": refusal.message}

    def whole(self, choices: list[Choice]) -> dict:
        (choice,) = choices
        said = self._said(choice.text, done=True) | self._logprobs(choice.logprobs)
        return said | self._ended(choice, choice.finished)

    def loaded(self) -> dict:
        """Return the answer to a request that only wants the model loaded."""
        return self._said("", done=True) | {"done_reason": "load"}

    def _said(self, text: str, *, done: bool) -> dict:
        return {"model": self.model, "created_at": now(), **self._text(text), "done": done}

    def _text(self, text: str) -> dict:
        raise NotImplementedError

    def _ended(self, choice: Choice, finished: Finished) -> dict:
        timings = finished.timings
        return {
            "done_reason": finished.finish_reason,
            "total_duration": int((time.monotonic() - self._began) * _NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": choice.num_prompt_tokens,
            "prompt_eval_duration": int((timings.encode_s + timings.prefill_s) * _NANOSECONDS),
            "eval_count": finished.num_tokens,
            "eval_duration": int(timings.decode_s * _NANOSECONDS),
            "confidence": finished.confidence,
        }

    def _logprobs(self, tokens: list[TokenLogprob]) -> dict:
        return {"logprobs": logprob_entries(tokens)} if self.with_logprobs else {}


class ChatFormat(_OllamaFormat):
    """/api/chat."""

    def _text(self, text: str) -> dict:
        return {"message": {"role": "assistant", "content": text}}


class GenerateFormat(_OllamaFormat):
    """/api/generate."""

    def _text(self, text: str) -> dict:
        return {"response": text}


def now() -> str:
    """Return the time as Ollama writes it."""
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
