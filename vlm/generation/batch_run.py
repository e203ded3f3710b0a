"""One batch on its way from prompts to replies, with its times."""

import time
from collections.abc import Iterator

import torch

from vlm.batch import Batch, DecoderPrompt, build_batch
from vlm.errors import VLMError
from vlm.generation.draft import Draft, can_draft, decode_ahead
from vlm.generation.generate import BadLogits, Prefilled, Step, decode, prefill
from vlm.generation.grammar import Grammars
from vlm.generation.reply import Reply, ReplyText, Timings
from vlm.generation.sampling import GenerationConfig, Sampler
from vlm.model import VisionLanguageModel
from vlm.tokenizer import Tokenizer


class Run:
    """One batch on its way from prompts to replies."""

    def __init__(
        self,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        prompts: list[DecoderPrompt],
        rooms: list[int],
        config: GenerationConfig,
        clock: "Clock",
        grammars: Grammars,
        draft: Draft | None = None,
    ):
        self.model, self.tokenizer, self.prompts, self.config, self.clock = model, tokenizer, prompts, config, clock
        self.draft = draft
        self.rooms = rooms
        """Most tokens of each reply."""
        self.texts = [ReplyText(tokenizer, config.stops) for _ in prompts]
        self.constraints = [grammars.begin(config.schema) for _ in prompts]
        self.failed: dict[int, VLMError] = {}
        self.encode_s = clock.lap()
        self.prefill_s = self.decode_s = 0.0

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Yield (row, text) as replies grow."""
        model, device = self.model, self.model.decoder.embedding.weight.device
        batch = build_batch(self.prompts, self.tokenizer.image_marker_id, device)
        prefilled = prefill(model, batch, max(batch.lengths) + max(self.rooms))
        self.prefill_s = self.clock.lap()
        samplers = [
            Sampler(self.config, prompt.ids, device, constraint)
            for prompt, constraint in zip(self.prompts, self.constraints, strict=True)
        ]
        ended: set[int] = set()
        for step in self._steps(batch, prefilled, samplers, ended):
            text = self.texts[step.row]
            if isinstance(step, BadLogits):
                self.failed[step.row] = step.error
                continue
            yield step.row, text.add(step.token_id, step.probability)
            if text.finished:
                ended.add(step.row)
        for row, text in enumerate(self.texts):
            yield row, text.close()
        self.decode_s = self.clock.lap()

    def _steps(
        self, batch: Batch, prefilled: Prefilled, samplers: list[Sampler], ended: set[int]
    ) -> Iterator[Step | BadLogits]:
        """Yield the tokens of every reply, by the draft where there is one and it may be used."""
        if self.draft is None or not can_draft(samplers) or len(batch.prompts) > 1:
            return decode(self.model, batch, prefilled, samplers, self.rooms, ended)
        proposer = self.draft.begin(self.prompts[0].ids, self.rooms[0])
        return decode_ahead(self.model, batch, prefilled, samplers[0], self.rooms[0], ended, proposer)

    def finish(self) -> list[Reply | VLMError]:
        """Write all replies to their end and return what became of each prompt."""
        for _ in self.pieces():
            pass
        return self.replies()

    def stream(self) -> Iterator[str]:
        """Yield the text of the only reply as it grows.

        Between two pieces the caller's own code runs, so the gradient mode is entered and left around each.
        """
        pieces = self.pieces()
        while True:
            with torch.inference_mode():
                _, piece = next(pieces, (0, None))
            if piece is None:
                break
            if piece:
                yield piece
        reply = self.replies()[0]
        if isinstance(reply, VLMError):
            raise reply

    def replies(self) -> list[Reply | VLMError]:
        """Return what became of each prompt; to be called when all replies are at their end."""
        num_tokens = sum(len(text.token_ids) for text in self.texts)
        timings = Timings(
            encode_s=self.encode_s,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            tokens_per_s=num_tokens / self.decode_s if self.decode_s else 0.0,
        )
        return [
            self.failed[row]
            if row in self.failed
            else Reply(
                text=text.text,
                token_ids=text.token_ids,
                finish_reason="stop" if text.finished else "length",
                confidence=text.confidence,
                timings=timings,
            )
            for row, text in enumerate(self.texts)
        ]


class Clock:
    """Seconds since it was last read."""

    def __init__(self, device: torch.device):
        self._device = device
        self._since = time.perf_counter()

    def lap(self) -> float:
        if self._device.type == "cuda":
            # Work on the device is only queued when a call returns.
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        return elapsed
