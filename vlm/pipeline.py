"""The public API: pictures and text in, replies out."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlm import checkpoint
from vlm.batch import Batch, DecoderPrompt, build_batch
from vlm.errors import VLMError, public
from vlm.generate import BadLogits, Clock, decode, not_finite, prefill, reply_log_probabilities
from vlm.image_cache import EncodedImage
from vlm.image_source import DEFAULT_CACHE_BYTES, ImageSource
from vlm.loading import choose_device, choose_dtype, load, warn_of_other_template
from vlm.model import VisionLanguageModel
from vlm.prompt import Prompt, encode_completion, encode_prompt, parse_messages
from vlm.reply import ModelInfo, Reply, ReplyText, Score, Timings
from vlm.sampling import DEFAULT_MAX_NEW_TOKENS, GenerationConfig, Sampler
from vlm.tokenizer import Tokenizer

DEFAULT_MODEL = Path(__file__).parent / "default_model"
CAPTION_REQUEST = "Describe this image."
MAX_BATCH_SIZE = 8


def _public_method(method):
    """A public method: no gradients, and every refusal leaves as a `VLMError`."""
    return functools.wraps(method)(public(torch.inference_mode()(method)))


class VLM:
    """A vision-language model with its tokenizer, ready to answer."""

    def __init__(
        self,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        *,
        allow_urls: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.images = None
        if model.config.vision is not None:
            self.images = ImageSource(model, fetch=_url_fetcher() if allow_urls else None, cache_bytes=cache_bytes)

    @classmethod
    @public
    def from_pretrained(
        cls,
        source: str | os.PathLike | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        reference: str = "meta",
        allow_urls: bool = False,
        revision: str | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> "VLM":
        """Load the shipped model (`source=None`), a folder, or a model of the Hugging Face Hub by name.

        device: "auto" takes an accelerator when there is one. dtype: "auto" is the checkpoint's own.
        reference: "meta" computes what Meta's code computes, "transformers" what stock transformers computes since
            about 4.56; fine-tunes trained there have learned its features.
        cache_bytes: bound of the memory in which encoded pictures are kept for the next question.

        Raises: VLMError with `checkpoint_invalid`, `device_unavailable` or `invalid_request`.
        """
        if quantize is not None:
            raise VLMError("invalid_request", f"quantize is {quantize!r:.40}; only None is offered yet")
        folder = DEFAULT_MODEL if source is None else checkpoint.resolve(source, revision=revision)
        model, tokenizer = load(folder, choose_device(device), choose_dtype(dtype), reference)
        warn_of_other_template(folder)
        return cls(model, tokenizer, allow_urls=allow_urls, cache_bytes=cache_bytes)

    @property
    def device(self) -> torch.device:
        return self.model.decoder.embedding.weight.device

    @property
    def info(self) -> ModelInfo:
        parameters = list(self.model.parameters())
        vision = self.model.config.vision
        return ModelInfo(
            num_parameters=sum(parameter.numel() for parameter in parameters),
            num_bytes=sum(parameter.nbytes for parameter in parameters),
            dtype=self.model.decoder.embedding.weight.dtype,
            device=self.device,
            max_context=self.model.config.decoder.max_context,
            tile_size=vision.tile_size if vision else None,
            max_tiles=vision.max_tiles if vision else None,
            reference=self.model.config.reference,
        )

    # Replies

    def caption(self, image: object, *, config: GenerationConfig | None = None) -> Reply:
        """Return a description of `image`."""
        return self.chat(_question(image, CAPTION_REQUEST), config=config)

    def answer(self, image: object, question: str, *, config: GenerationConfig | None = None) -> Reply:
        """Return the answer to `question` about `image`."""
        return self.chat(_question(image, question), config=config)

    def answer_many(
        self, pairs: Sequence[tuple[object, str]], *, config: GenerationConfig | None = None
    ) -> list[Reply]:
        """Return the answers to (image, question) pairs, in their order; an image is encoded once."""
        return self.chat_many([_question(image, question) for image, question in pairs], config=config)

    def chat(
        self, messages: list[dict], *, config: GenerationConfig | None = None, continue_final: bool = False
    ) -> Reply:
        """Return the assistant's next turn, or with `continue_final` how its last turn goes on."""
        return self.chat_many([messages], config=config, continue_final=continue_final)[0]

    @_public_method
    def chat_many(
        self,
        conversations: Sequence[list[dict]],
        *,
        config: GenerationConfig | None = None,
        continue_final: bool = False,
        batch_size: int = MAX_BATCH_SIZE,
        return_errors: bool = False,
    ) -> list[Reply | VLMError]:
        """Return a reply to each conversation, in their order: any mix of text-only, one and many images.

        batch_size: most conversations computed together.
        return_errors: put the error of a conversation in its place, instead of raising the first.
        """
        make = functools.partial(self._chat_prompt, continue_final=continue_final)
        return self._reply_many(list(conversations), make, config, batch_size, return_errors)

    @_public_method
    def complete(self, parts: str | list, *, config: GenerationConfig | None = None) -> Reply:
        """Return how `parts` (texts and images) go on, without a chat format; for base checkpoints."""
        make = functools.partial(encode_completion, self.tokenizer)
        return self._reply_many([parts], make, config, 1, return_errors=False)[0]

    def stream(
        self, messages: list[dict], *, config: GenerationConfig | None = None, continue_final: bool = False
    ) -> Iterator[str]:
        """Yield the reply to `messages` in pieces as it is written; joined they are its text."""
        config = _config(config)
        pieces = self._stream(messages, config, continue_final)
        return pieces

    # What lies under a reply

    @_public_method
    def encode_image(self, image: object) -> EncodedImage:
        """Return `image` encoded, to be given wherever an image goes."""
        return self._images().encode(image).encoded

    @_public_method
    def score(self, messages: list[dict], texts: Sequence[str], *, continue_final: bool = False) -> list[Score]:
        """Return the log-probability of each of `texts` as the reply to `messages`."""
        if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
            raise VLMError("invalid_request", "texts holds something that is no text; give a list of texts, none empty")
        if not texts:
            return []
        prompt = self._chat_prompt(messages, continue_final=continue_final)
        replies = [self.tokenizer.encode(text) for text in texts]
        self._room(prompt, max(len(ids) for ids in replies))
        totals = reply_log_probabilities(self.model, self._batch([prompt]), replies)
        return [
            Score(text=text, logprob=total, num_tokens=len(ids))
            for text, total, ids in zip(texts, totals, replies, strict=True)
        ]

    @public
    def prompt_ids(self, messages: list[dict], *, continue_final: bool = False) -> list[int]:
        """Return the token ids that the decoder is fed for `messages`."""
        return self._chat_prompt(messages, continue_final=continue_final).ids

    def logits(self, messages: list[dict], *, continue_final: bool = False) -> Tensor:
        """Return the logits [s, n] in float32, a row for each id of the prompt."""
        return self.logits_many([messages], continue_final=continue_final)[0]

    @_public_method
    def logits_many(self, conversations: Sequence[list[dict]], *, continue_final: bool = False) -> list[Tensor]:
        """Return the logits [s, n] in float32 of each conversation, computed as one batch."""
        prompts = [self._chat_prompt(messages, continue_final=continue_final) for messages in conversations]
        if not prompts:
            return []
        for prompt in prompts:
            self._room(prompt, 0)
        batch = self._batch(prompts)
        logits = self.model(batch.ids, batch.image, batch.mask(0, batch.ids.shape[1]))
        return [logits[row, :length].float() for row, length in enumerate(batch.lengths)]

    @public
    def save_pretrained(self, folder: str | os.PathLike, *, format: str = "hf") -> None:
        """Write the model and its tokenizer as a Hugging Face ("hf") or Meta ("meta") folder."""
        checkpoint.save_model(self.model, Path(folder), format=format)
        self.tokenizer.save(folder)

    # Parts

    def _chat_prompt(self, messages: list[dict], *, continue_final: bool) -> Prompt:
        return encode_prompt(self.tokenizer, parse_messages(messages), continue_final=continue_final)

    def _images(self) -> ImageSource:
        if self.images is None:
            raise VLMError("invalid_request", "this is a text-only model; give text alone, or load a vision model")
        return self.images

    def _batch(self, prompts: list[Prompt]) -> Batch:
        """Encode what is new and return the prompts as one batch."""
        ready = [
            DecoderPrompt(prompt.ids, [self._images().prompt_image(image) for image in prompt.images])
            for prompt in prompts
        ]
        return build_batch(ready, self.tokenizer.image_marker_id, self.device)

    def _room(self, prompt: Prompt, wanted: int | None) -> int:
        """Return how many tokens the reply may have."""
        limit = self.model.config.decoder.max_context
        room = limit - len(prompt.ids)
        if room < (1 if wanted is None else wanted):
            more = f" and {wanted} more were asked for" if wanted else ""
            raise VLMError(
                "context_length_exceeded",
                f"the prompt has {len(prompt.ids)} tokens{more}, the context {limit}; shorten it or ask for less",
            )
        return min(room, DEFAULT_MAX_NEW_TOKENS) if wanted is None else wanted

    def _reply_many(self, requests, make_prompt, config, batch_size, return_errors) -> list[Reply | VLMError]:
        config = _config(config)
        if batch_size < 1:
            raise VLMError("invalid_request", f"batch_size is {batch_size}; give at least 1")
        replies: list[Reply | VLMError] = []
        for start in range(0, len(requests), batch_size):
            replies += self._reply_batch(requests[start : start + batch_size], make_prompt, config, return_errors)
        return replies

    def _reply_batch(self, requests, make_prompt, config, return_errors) -> list[Reply | VLMError]:
        """Return the replies to `requests`, computed together; a bad one leaves its neighbours alone."""
        clock = Clock(self.device)
        replies: list[Reply | VLMError | None] = [None] * len(requests)
        rows: list[tuple[int, DecoderPrompt, int]] = []
        for place, request in enumerate(requests):
            try:
                rows.append((place, *self._prepare(request, make_prompt, config)))
            except VLMError as error:
                if not return_errors:
                    raise
                replies[place] = error
        if rows:
            run = _Run(self, [row[1] for row in rows], [row[2] for row in rows], config, clock)
            for _ in run.pieces():
                pass
            for (place, *_), reply in zip(rows, run.replies(), strict=True):
                if isinstance(reply, VLMError) and not return_errors:
                    raise reply
                replies[place] = reply
        return replies

    @public
    def _prepare(self, request, make_prompt, config: GenerationConfig) -> tuple[DecoderPrompt, int]:
        """Return the prompt with its images encoded, and how long its reply may be."""
        prompt = make_prompt(request)
        room = self._room(prompt, config.max_new_tokens)
        return DecoderPrompt(prompt.ids, [self._images().prompt_image(image) for image in prompt.images]), room

    @public
    def _stream(self, messages, config: GenerationConfig, continue_final: bool) -> Iterator[str]:
        """Check the request at once and return the iterator that computes it."""
        prompt = self._chat_prompt(messages, continue_final=continue_final)
        self._room(prompt, config.max_new_tokens)

        def pieces():
            # Entered and left around each step: a caller's code between two pieces keeps its own gradient mode.
            clock = Clock(self.device)
            with torch.inference_mode():
                ready, room = self._prepare(messages, lambda _: prompt, config)
                run = _Run(self, [ready], [room], config, clock)
                steps = run.pieces()
            while True:
                with torch.inference_mode():
                    piece = next(steps, None)
                if piece is None:
                    break
                if piece[1]:
                    yield piece[1]
            reply = run.replies()[0]
            if isinstance(reply, VLMError):
                raise reply

        return pieces()


class _Run:
    """One batch on its way from prompts to replies."""

    def __init__(
        self, vlm: VLM, prompts: list[DecoderPrompt], rooms: list[int], config: GenerationConfig, clock: Clock
    ):
        self.vlm, self.prompts, self.rooms, self.config, self.clock = vlm, prompts, rooms, config, clock
        self.texts = [ReplyText(vlm.tokenizer, config.stops) for _ in prompts]
        self.failed: set[int] = set()
        self.encode_s = clock.lap()
        self.prefill_s = self.decode_s = 0.0

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Yield (row, text) as replies grow."""
        model = self.vlm.model
        batch = build_batch(self.prompts, self.vlm.tokenizer.image_marker_id, self.vlm.device)
        capacity = max(length + room for length, room in zip(batch.lengths, self.rooms, strict=True))
        prefilled = prefill(model, batch, capacity)
        self.prefill_s = self.clock.lap()
        samplers = [Sampler(self.config, prompt.ids, self.vlm.device) for prompt in self.prompts]
        ended: set[int] = set()
        for step in decode(model, batch, prefilled, samplers, self.rooms, ended):
            text = self.texts[step.row]
            if isinstance(step, BadLogits):
                self.failed.add(step.row)
                continue
            yield step.row, text.add(step.token_id, step.probability)
            if text.finished:
                ended.add(step.row)
        for row, text in enumerate(self.texts):
            yield row, text.close()
        self.decode_s = self.clock.lap()

    def replies(self) -> list[Reply | VLMError]:
        """Return what became of each prompt."""
        num_tokens = sum(len(text.token_ids) for text in self.texts)
        timings = Timings(
            encode_s=self.encode_s,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            tokens_per_s=num_tokens / self.decode_s if self.decode_s else 0.0,
        )
        return [
            not_finite()
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


def _question(image: object, question: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def _config(config: GenerationConfig | None) -> GenerationConfig:
    if config is None:
        return GenerationConfig()
    if not isinstance(config, GenerationConfig):
        raise VLMError("invalid_request", f"config is a {type(config).__name__}; give a GenerationConfig")
    return config


def _url_fetcher():
    from vlm.fetch import fetch

    return fetch
