"""Replies as OpenAI's API writes them: chat completions and completions, whole and in chunks."""

import time
import uuid

from vlm.serving.http.json_text import json_bytes
from vlm.serving.model_process.job import Piece, TokenLogprob
from vlm.serving.refusal import Refusal
from vlm.serving.reply_format import Choice

MIN_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON has not; OpenAI's own value."""


class _OpenAIFormat:
    """What chat completions and completions share."""

    media_type = "text/event-stream; charset=utf-8"
    object: str
    chunk_object: str
    id_prefix: str

    def __init__(self, model: str, *, with_logprobs: bool, include_usage: bool):
        self.with_logprobs, self.include_usage = with_logprobs, include_usage
        self._head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def opening(self, choice: Choice) -> dict | None:
        return None

    def closing(self, choices: list[Choice]) -> list[bytes]:
        frames = [b"data: [DONE]\n\n"]
        if self.include_usage:
            frames.insert(0, self.frame({**self._chunk([]), "usage": _usage(choices)}))
        return frames

    def frame(self, chunk: dict) -> bytes:
        return b"data: " + json_bytes(chunk) + b"\n\n"

    def error(self, refusal: Refusal) -> dict:
        return refusal.openai()

    def whole(self, choices: list[Choice]) -> dict:
        return {
            **self._head,
            "object": self.object,
            "choices": [self._choice(choice) for choice in choices],
            "usage": _usage(choices),
        }

    def _chunk(self, choices: list[dict]) -> dict:
        usage = {"usage": None} if self.include_usage else {}
        return {**self._head, "object": self.chunk_object, "choices": choices, **usage}

    def _choice(self, choice: Choice) -> dict:
        raise NotImplementedError


class ChatFormat(_OpenAIFormat):
    """Chat completions. A choice also has `confidence`, the mean probability of its tokens."""

    object, chunk_object, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, choice: Choice) -> dict:
        return self._delta(choice, {"role": "assistant", "content": ""})

    def piece(self, choice: Choice, piece: Piece) -> dict:
        return self._delta(choice, {"content": piece.text}, self._logprobs(piece.logprobs))

    def ending(self, choice: Choice) -> dict:
        chunk = self._delta(choice, {}, finish_reason=choice.finished.finish_reason)
        chunk["choices"][0]["confidence"] = choice.finished.confidence
        return chunk

    def _delta(self, choice: Choice, delta: dict, logprobs: dict | None = None, finish_reason: str | None = None):
        said = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._chunk([said])

    def _choice(self, choice: Choice) -> dict:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finished.finish_reason,
            "confidence": choice.finished.confidence,
        }

    def _logprobs(self, tokens: list[TokenLogprob]) -> dict | None:
        if not self.with_logprobs:
            return None
        return {"content": logprob_entries(tokens), "refusal": None}


class CompletionFormat(_OpenAIFormat):
    """Completions, the older API that base checkpoints are asked by."""

    object, chunk_object, id_prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self._offsets: dict[int, int] = {}
        """How long the text of each choice is so far."""

    def piece(self, choice: Choice, piece: Piece) -> dict:
        return self._chunk([self._part(choice, piece.text, piece.logprobs)])

    def ending(self, choice: Choice) -> dict:
        return self._chunk([self._part(choice, "", [], choice.finished.finish_reason)])

    def _choice(self, choice: Choice) -> dict:
        part = self._part(choice, choice.text, choice.logprobs, choice.finished.finish_reason)
        return {**part, "confidence": choice.finished.confidence}

    def _part(self, choice: Choice, text: str, logprobs: list[TokenLogprob], finish_reason: str | None = None) -> dict:
        lists = self._lists(choice.index, logprobs) if self.with_logprobs else None
        return {"index": choice.index, "text": text, "logprobs": lists, "finish_reason": finish_reason}

    def _lists(self, index: int, tokens: list[TokenLogprob]) -> dict:
        offsets, offset = [], self._offsets.get(index, 0)
        for token in tokens:
            offsets.append(offset)
            offset += len(token.token)
        self._offsets[index] = offset
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [max(MIN_LOGPROB, token.logprob) for token in tokens],
            "top_logprobs": [{text: max(MIN_LOGPROB, logprob) for text, _, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }


def logprob_entries(tokens: list[TokenLogprob]) -> list[dict]:
    """Return how likely tokens and their alternatives were, as OpenAI and Ollama write it."""
    return [
        {
            **_logprob_entry(token.token, token.token_bytes, token.logprob),
            "top_logprobs": [_logprob_entry(*alternative) for alternative in token.top],
        }
        for token in tokens
    ]


def _logprob_entry(text: str, token_bytes: bytes, logprob: float) -> dict:
    return {"token": text, "bytes": list(token_bytes), "logprob": max(MIN_LOGPROB, logprob)}


def _usage(choices: list[Choice]) -> dict:
    """Return the tokens of all prompts, each once, and of all choices."""
    prompt_tokens = sum({choice.prompt: choice.num_prompt_tokens for choice in choices}.values())
    tokens = sum(choice.finished.num_tokens for choice in choices)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
