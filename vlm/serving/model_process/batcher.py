"""Continuous batching: replies join and leave the running batch between steps. One thread; no input, no output."""

import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.batch import Batch, build_batch, mean_of_views
from vlm.errors import VLMError, is_out_of_memory
from vlm.generation.generate import BadLogits, Prefilled, Step, choose, prefill_in_chunks
from vlm.generation.reply import Timings
from vlm.model import VisionLanguageModel
from vlm.serving.model_process.job import Event, Failed, Finished, Piece, Started, TokenLogprob
from vlm.serving.model_process.running_batch import Row, RunningRows
from vlm.tokenizer import Tokenizer

PREFILL_TOKENS = 2048
"""Prompt tokens, padding included, that are read together where nobody waits for the next token of a reply."""
PREFILL_TOKENS_BETWEEN = 512
"""Prompt tokens that are read between two steps of the replies that are being written."""

_NO_MEMORY = (
    "there is not enough memory for this request beside those being answered; ask for fewer tokens, shorten the "
    "prompt, or try again later"
)

Events = list[tuple[int, Event]]
"""What happened to which job."""


class _Reading(NamedTuple):
    """Newcomers whose prompts are being read."""

    rows: list[Row]
    batch: Batch
    chunks: Iterator[Prefilled]


class Batcher:
    """Writes the replies to many requests at once; each is what it would be alone."""

    def __init__(self, model: VisionLanguageModel, tokenizer: Tokenizer, num_slots: int):
        self._model, self._tokenizer, self._num_slots = model, tokenizer, num_slots
        self._waiting: deque[Row] = deque()
        self._reading: _Reading | None = None
        self._running = RunningRows(model, num_slots)
        self._cancelled: set[int] = set()
        self._max_together = num_slots

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._reading or self._running.rows)

    def add(self, row: Row) -> None:
        """Take in a request; its prompt is read as soon as there is a slot."""
        self._waiting.append(row)

    @torch.inference_mode()
    def cancel(self, key: int) -> None:
        """Forget a job: no step works for it from now on, and no event comes of it."""
        self._waiting = deque(row for row in self._waiting if row.key != key)
        self._running.leave([row for row in self._running.rows if row.key == key])
        if self._reading is not None and any(row.key == key for row in self._reading.rows):
            # The others of its group go on; should there be none, nothing does.
            self._cancelled.add(key)
            if all(row.key in self._cancelled for row in self._reading.rows):
                self._end_reading()

    @torch.inference_mode()
    def step(self) -> Events:
        """Write the next token of each reply, and read on in the prompts of newcomers."""
        events = self._write() if self._running.rows else []
        if self._reading is None:
            events += self._begin_reading()
        if self._reading is not None:
            events += self._read()
        return events

    def _write(self) -> Events:
        rows = self._running.rows
        events = self._choose(rows, self._running.forward())
        self._running.leave([row for row in rows if row.is_over])
        return events

    def _begin_reading(self) -> Events:
        """Let as many wait no longer as there are slots for and as can be read together."""
        rows: list[Row] = []
        longest = num_views = 0
        most = min(self._num_slots - len(self._running.rows), self._max_together)
        while self._waiting and len(rows) < most:
            longest = max(longest, len(self._waiting[0].prompt.ids))
            num_views += len(self._waiting[0].prompt.views)
            if rows and num_views * longest > PREFILL_TOKENS:
                break
            rows.append(self._waiting.popleft())
        if not rows:
            return []
        now = time.perf_counter()
        for row in rows:
            row.since = now
        device = self._model.decoder.embedding.weight.device
        try:
            batch = build_batch([row.prompt for row in rows], self._tokenizer.image_marker_id, device)
        except (MemoryError, RuntimeError) as error:
            return self._give_up(rows, error)
        tokens = PREFILL_TOKENS_BETWEEN if self._running.rows else PREFILL_TOKENS
        chunks = prefill_in_chunks(self._model, batch, max(batch.lengths), max(1, tokens // len(batch.lengths)))
        self._reading = _Reading(rows, batch, chunks)
        return []

    def _read(self) -> Events:
        """Read a chunk; with the last one the newcomers join, and each has its first token."""
        rows, batch, chunks = self._reading
        try:
            prefilled = next(chunks)
            if prefilled.cache.max_length < max(batch.lengths):
                return []
            self._running.make_room(rows)
        except (MemoryError, RuntimeError) as error:
            return self._give_up(rows, error)
        events = self._choose(rows, mean_of_views(prefilled.hidden, batch.prompts))
        self._running.join(rows, batch, prefilled)
        self._running.leave([row for row in rows if row.is_over or row.key in self._cancelled])
        events = [(key, event) for key, event in events if key not in self._cancelled]
        self._end_reading()
        return events

    def _give_up(self, rows: list[Row], error: Exception) -> Events:
        """Leave the newcomers for which there is no memory; several may fit one by one. Raises: any other `error`."""
        if not is_out_of_memory(error):
            raise error
        rows = [row for row in rows if row.key not in self._cancelled]
        self._end_reading()
        if len(rows) > 1:
            self._max_together = 1
            self._waiting.extendleft(reversed(rows))
            return []
        return [(row.key, Failed("device_unavailable", _NO_MEMORY)) for row in rows]

    def _end_reading(self) -> None:
        self._reading = None
        self._cancelled.clear()

    def _choose(self, rows: list[Row], hidden: Tensor) -> Events:
        """Choose the next token of each row from its hidden state [b, d], and tell what came of it."""
        logits = self._model.decoder.logits(hidden).float()
        events: Events = []
        for step in choose(logits, {place: row.sampler for place, row in enumerate(rows)}):
            row = rows[step.row]
            events += [(row.key, event) for event in self._taken(row, step, logits[step.row])]
        return events

    def _taken(self, row: Row, step: Step | BadLogits, logits: Tensor) -> Iterator[Event]:
        """Yield what happens when a row takes a step."""
        if isinstance(step, BadLogits):
            row.is_broken = True
            yield failed(step.error)
            return
        if row.num_chosen == 0:
            yield Started(len(row.prompt.ids))
            row.prefill_s, row.since = _lap(row.since)
        row.num_chosen, row.last_id = row.num_chosen + 1, step.token_id
        num_before = len(row.text.token_ids)
        text = row.text.add(step.token_id, step.probability)
        logprobs = []
        if row.top_logprobs is not None and len(row.text.token_ids) > num_before:
            logprobs.append(self._logprob(step, logits, row.top_logprobs))
        if row.is_over:
            text += row.text.close()
        if text or logprobs:
            yield Piece(text, logprobs)
        if row.is_over:
            yield _finished(row)

    def _logprob(self, step: Step, logits: Tensor, num_top: int) -> TokenLogprob:
        found = logits.topk(min(num_top, len(logits)))
        # As distances from the chosen token, whose own is then 0: its two entries are the same number.
        distances = (found.values - logits[step.token_id]).tolist()
        top = [
            (*self._spelt(token_id), step.log_probability + distance)
            for token_id, distance in zip(found.indices.tolist(), distances, strict=True)
        ]
        return TokenLogprob(*self._spelt(step.token_id), step.log_probability, top)

    def _spelt(self, token_id: int) -> tuple[str, bytes]:
        """Return a token as text and as bytes; both empty for the id of no token."""
        try:
            spelt = self._tokenizer.decode_single_token_bytes(token_id)
        except VLMError:
            spelt = b""
        return spelt.decode("utf-8", errors="replace"), spelt


def failed(error: VLMError) -> Failed:
    """Return the event that says what is wrong with a request."""
    return Failed(error.code, error.message)


def _finished(row: Row) -> Finished:
    decode_s, _ = _lap(row.since)
    num_tokens = len(row.text.token_ids)
    timings = Timings(
        encode_s=row.encode_s,
        prefill_s=row.prefill_s,
        decode_s=decode_s,
        tokens_per_s=num_tokens / decode_s if decode_s else 0.0,
    )
    reason = "stop" if row.text.finished else "length"
    return Finished(reason, num_tokens, row.text.confidence, timings, row.text.token_ids)


def _lap(since: float) -> tuple[float, float]:
    """Return the seconds since `since`, and what time it is now."""
    now = time.perf_counter()
    return now - since, now
