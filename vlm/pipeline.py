"""The public API: pictures and text in, replies out."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from adapters import lora
from vlm import checkpoint
from vlm.batch import MAX_BATCH_SIZE, DecoderPrompt, mean_of_views
from vlm.checkpoint.hub import folder_path
from vlm.checkpoint.peft import load_adapter, read_adapter_settings
from vlm.errors import VLMError, public, shown
from vlm.explain import Chosen, explain
from vlm.generation.batch_run import Clock, Run
from vlm.generation.draft import Draft, refuse_vision
from vlm.generation.generate import rows_go_alone
from vlm.generation.grammar import Grammars
from vlm.generation.reply import ModelInfo, Reply, Score
from vlm.generation.reply_stream import ReplyStream
from vlm.generation.sampling import GenerationConfig
from vlm.generation.score import reply_log_probabilities
from vlm.images.cache import EncodedImage
from vlm.images.fetch import Fetcher
from vlm.images.source import DEFAULT_CACHE_BYTES, ImageSource
from vlm.loading import check_looking, choose_dtype, choose_kv_cache_dtype, load, warn_of_other_template
from vlm.model import VisionLanguageModel
from vlm.quantization import check_precision
from vlm.request import RequestReader, check_batch_size, listed, question_about, questions
from vlm.tokenizer import Tokenizer

DEFAULT_MODEL = Path(__file__).parent / "default_model"
CAPTION_REQUEST = "Describe this image."


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
        draft: "VLM | None" = None,
    ):
        """draft: a small text-only model of the same vocabulary, as `from_pretrained` takes it."""
        _check_cache_bytes(cache_bytes)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.images = None
        if model.config.vision is not None:
            self.images = ImageSource(model, fetch=Fetcher() if allow_urls else None, cache_bytes=cache_bytes)
        self.grammars = Grammars(tokenizer, model.config.decoder.vocab_size)
        self._requests = RequestReader(model, tokenizer, self.images)
        self._draft = None
        if draft is not None:
            _check_is_model(draft)
            self._draft = Draft(draft.model, draft.tokenizer, large=model, large_tokenizer=tokenizer)

    @classmethod
    @public
    def from_pretrained(
        cls,
        source: str | os.PathLike | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        kv_cache_dtype: str | torch.dtype = "auto",
        reference: str = "meta",
        allow_urls: bool = False,
        revision: str | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        low_memory: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
        draft: "str | os.PathLike | VLM | None" = None,
        adapters: Sequence[str | os.PathLike] = (),
        num_views: int | None = None,
        thin: bool | None = None,
    ) -> "VLM":
        """Load the shipped model (`source=None`), a folder, or a model of the Hugging Face Hub by name.

        device: "auto" takes an accelerator when there is one, and shares the layers among torchrun's processes.
        dtype: "auto" is the checkpoint's own.
        quantize: "int8" or "int4" keeps the decoder's matrices so; a checkpoint that is quantised stays as it is.
        kv_cache_dtype: "int8" halves the memory of the text's keys and values and what a token after a long text reads;
            "auto" is the model's own.
        reference: "meta" computes what Meta's code computes, "transformers" what stock transformers computes since
            about 4.56; fine-tunes trained there have learned its features.
        cache_bytes: bound of the memory in which encoded pictures are kept for the next question.
        low_memory: on a CPU, leave the vision tower and the embedding in their safetensors files, mapped, and their
            pages in memory only while a picture is encoded, where they are stored in the model's dtype; None does so
            where memory is short. The files must then stay as they are while the model is used. On a GPU, leave the
            layers of the vision tower in the CPU's memory, and of those of the decoder that are not quantised as many
            as have to, copied to the GPU whenever they are wanted; None leaves no more there than has to be, False
            nothing.
        progress: called with the number of weights read so far and of all, as they are read.
        draft: a small text-only model of the same vocabulary (a folder, a Hub name, or one that is loaded) that
            proposes tokens, which this one checks several at a time: long replies come sooner and stay its own. It is
            used for one conversation at a time, greedily, without a schema or a repetition penalty; others go without.
            It comes to the same device, in the same dtype and, unless it is quantised already and stays so, in the
            same precision.
        adapters: folders of low-rank adapters that are put on top of it, as `load_adapter` does; they add up.
        num_views: in how many views a picture is looked at, at most 8: as it comes, and shifted by parts of a patch or
            larger. Each is encoded and read alone, and the mean decides, so that a slip of one is outvoted.
            1 is what every other checkpoint does and what the references compute.
        thin: have one blank patch stand for many, which makes charts and pages several times cheaper to encode and
            changes little. False is what the references compute. None, here as for `num_views`, is the checkpoint's own
            (seven views and thinned in the shipped model).

        Raises: VLMError with `checkpoint_invalid`, `device_unavailable` or `invalid_request`.
        """
        check_precision(quantize)
        cache_dtype = choose_kv_cache_dtype(kv_cache_dtype)
        _check_cache_bytes(cache_bytes)
        check_looking(num_views, thin, reference)
        # Before the large one, so that an adapter or a draft that cannot be read is known soonest.
        for folder in adapters:
            read_adapter_settings(folder)
        draft = cls._loaded_draft(draft, device, dtype, quantize)
        folder = DEFAULT_MODEL if source is None else checkpoint.resolve(source, revision=revision)
        dtype = choose_dtype(dtype)
        model, tokenizer = load(folder, device, dtype, reference, quantize, low_memory, progress, num_views, thin)
        model.kv_cache_dtype = cache_dtype
        warn_of_other_template(folder)
        for adapter in adapters:
            load_adapter(model, adapter)
        return cls(model, tokenizer, allow_urls=allow_urls, cache_bytes=cache_bytes, draft=draft)

    @classmethod
    def _loaded_draft(
        cls, draft: object, device: str | torch.device, dtype: str | torch.dtype, quantize: str | None
    ) -> "VLM | None":
        """Return the draft that is meant; a vision model is refused before its weights are read."""
        if draft is None or isinstance(draft, VLM):
            return draft
        folder = checkpoint.resolve(draft)
        refuse_vision(checkpoint.read_config(folder))
        quantize = None if checkpoint.stays_quantized(folder) else quantize
        return cls.from_pretrained(folder, device=device, dtype=dtype, quantize=quantize)

    @property
    def device(self) -> torch.device:
        return self.model.decoder.embedding.weight.device

    @property
    def info(self) -> ModelInfo:
        return ModelInfo.of(self.model)

    @public
    def load_adapter(self, folder: str | os.PathLike, *, strength: float = 1.0) -> str:
        """Add the low-rank adapter in `folder` (PEFT's layout) to the model, and return the name it goes by here.

        Several add up, each `strength` times. `adapters.lora` merges them into the weights and takes them away.

        Raises: VLMError with `checkpoint_invalid` for what is no such adapter, or one of another model.
        """
        return load_adapter(self.model, folder, strength=strength)

    # Replies

    def caption(self, image: object, *, config: GenerationConfig | None = None) -> Reply:
        """Return a description of `image`."""
        return self.chat(question_about(image, CAPTION_REQUEST), config=config)

    def answer(
        self, image: object, question: str, *, config: GenerationConfig | None = None, schema: dict | None = None
    ) -> Reply:
        """Return the answer to `question` about `image`; with a JSON `schema`, as JSON of that form."""
        if schema is not None:
            config = replace(_config(config), schema=schema)
        return self.chat(question_about(image, question), config=config)

    def answer_many(
        self, pairs: Sequence[tuple[object, str]], *, config: GenerationConfig | None = None
    ) -> list[Reply]:
        """Return the answers to (image, question) pairs, in their order; an image is encoded once."""
        conversations, order = questions(pairs)
        replies = self.chat_many([conversations[place] for place in order], config=config)
        return [reply for _, reply in sorted(zip(order, replies, strict=True), key=itemgetter(0))]

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
        config = _config(config)
        check_batch_size(batch_size)
        read = functools.partial(self._requests.chat, continue_final=continue_final)
        requests = listed("conversations", conversations)
        replies: list[Reply | VLMError] = []
        for start in range(0, len(requests), batch_size):
            replies += self._reply(requests[start : start + batch_size], read, config, return_errors)
        return replies

    @_public_method
    def complete(self, parts: str | list, *, config: GenerationConfig | None = None) -> Reply:
        """Return how `parts` (texts and images) go on, without a chat format; for base checkpoints."""
        return self._reply([parts], self._requests.completion, _config(config), return_errors=False)[0]

    @_public_method
    def stream(
        self, messages: list[dict], *, config: GenerationConfig | None = None, continue_final: bool = False
    ) -> ReplyStream:
        """Yield the reply to `messages` in pieces as it is written; joined they are its text.

        What is given back has the `reply` itself, as far as it is written, and can be closed early.
        The request is read before this returns, its images too: what is wrong with it is raised here.
        """
        read = functools.partial(self._requests.chat, continue_final=continue_final)
        config, clock = _config(config), Clock(self.device)
        prompt, room = self._prepare(messages, read, config)
        return ReplyStream(self._run([prompt], [room], config, clock))

    # What lies under a reply

    @_public_method
    def encode_image(self, image: object) -> EncodedImage:
        """Return `image` encoded, to be given wherever an image goes."""
        return self._requests.images.encode(image).encoded

    @_public_method
    def explain(
        self,
        messages: list[dict],
        reply: Reply | str | Sequence[int],
        *,
        layers: Chosen = None,
        heads: Chosen = None,
        tokens: Chosen = None,
        max_side: int | None = None,
        continue_final: bool = False,
    ) -> list[Tensor] | list[list[Tensor]]:
        """Return for each token of `reply` where the model looked when it wrote it: float32 [height, width], sum 1.

        A map is in the pixels of the upright picture as it came; with several images each token has a list of maps, one
        an image in prompt order, which sum to 1 together: an image that the reply does not see has zeros.

        reply: a Reply, its token ids, or a text, which is then taken as the tokens it is encoded to.
        layers: cross-attention layers to take the mean of, counted from 0 among themselves; None: all.
        heads: attention heads to take the mean of; None: all.
        tokens: tokens of the reply to give maps of, in this order; None: all.
        max_side: give maps of larger pictures reduced to this many pixels along the longer side.
        """
        prompt = self._requests.chat(messages, continue_final=continue_final)
        choice = {"layers": layers, "heads": heads, "tokens": tokens, "max_side": max_side}
        return explain(self._requests, prompt, reply, **choice)

    @_public_method
    def score(self, messages: list[dict], texts: Sequence[str], *, continue_final: bool = False) -> list[Score]:
        """Return the log-probability of each of `texts` as the reply to `messages`."""
        texts = listed("texts", texts)
        if not all(isinstance(text, str) and text for text in texts):
            raise VLMError("invalid_request", "texts holds something that is no text; give a list of texts, none empty")
        if not texts:
            return []
        prompt = self._requests.chat(messages, continue_final=continue_final)
        replies = [self.tokenizer.encode(text) for text in texts]
        self._requests.room(prompt, max(len(ids) for ids in replies))
        totals = reply_log_probabilities(self.model, self._requests.batch([prompt]), replies)
        return [
            Score(text=text, logprob=total, num_tokens=len(ids))
            for text, total, ids in zip(texts, totals, replies, strict=True)
        ]

    @public
    def prompt_ids(self, messages: list[dict], *, continue_final: bool = False) -> list[int]:
        """Return the token ids that the decoder is fed for `messages`."""
        return self._requests.chat(messages, continue_final=continue_final).ids

    def logits(self, messages: list[dict], *, continue_final: bool = False) -> Tensor:
        """Return the logits [s, n] in float32, a row for each id of the prompt."""
        return self.logits_many([messages], continue_final=continue_final)[0]

    @_public_method
    def logits_many(self, conversations: Sequence[list[dict]], *, continue_final: bool = False) -> list[Tensor]:
        """Return the logits [s, n] in float32 of each conversation, computed as one batch."""
        prompts = [
            self._requests.chat(messages, continue_final=continue_final)
            for messages in listed("conversations", conversations)
        ]
        if not prompts:
            return []
        for prompt in prompts:
            self._requests.room(prompt, 0)
        batch = self._requests.batch(prompts)
        decoder = self.model.decoder
        hidden = decoder(batch.ids, None, batch.image, batch.mask(0, batch.ids.shape[1])).hidden
        logits = decoder.logits(mean_of_views(hidden, batch.prompts))
        with torch.inference_mode(False):
            # Copies made out here are ordinary tensors, which callers may change.
            return [logits[row, : len(prompt.ids)].to(torch.float32, copy=True) for row, prompt in enumerate(prompts)]

    @public
    def save_pretrained(self, folder: str | os.PathLike, *, format: str = "hf") -> None:
        """Write the model and its tokenizer as a Hugging Face ("hf") or Meta ("meta") folder."""
        if lora.adapter_names(self.model):
            raise VLMError(
                "invalid_request",
                "the model carries adapters, which have no place in its own folder; merge them first with "
                "adapters.lora.merge(model.model, keep_original=False)",
            )
        # A tokenizer that the format cannot hold is refused before any weight is written.
        files = self.tokenizer.files(format)

        def write_more(staging: Path) -> None:
            for name, content in files.items():
                (staging / name).write_bytes(content)

        path = folder_path(folder)
        checkpoint.save_model(self.model, path, format=format, write_more=write_more, tokenizer=self.tokenizer)

    # Parts

    def _reply(self, requests, read, config: GenerationConfig, return_errors: bool) -> list[Reply | VLMError]:
        """Return the replies to `requests`, computed together; a bad one leaves its neighbours alone."""
        clock = Clock(self.device)
        replies: list[Reply | VLMError | None] = [None] * len(requests)
        rows: list[tuple[int, DecoderPrompt, int]] = []
        for place, request in enumerate(requests):
            try:
                rows.append((place, *self._prepare(request, read, config)))
            except VLMError as error:
                if not return_errors:
                    raise
                replies[place] = error
        in_views = any(prompt.other_views for _, prompt, _ in rows)
        together = [[row] for row in rows] if in_views and rows_go_alone(self.model) else [rows]
        for some in filter(None, together):
            places, prompts, rooms = zip(*some, strict=True)
            run = self._run(list(prompts), list(rooms), config, clock)
            for place, reply in zip(places, run.finish(), strict=True):
                if isinstance(reply, VLMError) and not return_errors:
                    raise reply
                replies[place] = reply
        return replies

    def _run(self, prompts: list[DecoderPrompt], rooms: list[int], config: GenerationConfig, clock: Clock) -> Run:
        return Run(self.model, self.tokenizer, prompts, rooms, config, clock, self.grammars, self._draft)

    @public
    def _prepare(self, request, read, config: GenerationConfig) -> tuple[DecoderPrompt, int]:
        """Return what `read` makes of a request, with its images encoded, and how long its reply may be."""
        prompt = read(request)
        room = self._requests.room(prompt, config.max_new_tokens)
        return self._requests.ready(prompt), room


def _check_cache_bytes(cache_bytes: object) -> None:
    if not isinstance(cache_bytes, Real) or not cache_bytes >= 0:
        raise VLMError("invalid_request", f"cache_bytes is {shown(cache_bytes)}; give a number, 0 for no cache")


def _check_is_model(draft: object) -> None:
    if not isinstance(draft, VLM):
        raise VLMError(
            "invalid_request",
            f"draft is {shown(draft)}; give a VLM here, or its folder or name to VLM.from_pretrained(..., draft=...)",
        )


def _config(config: GenerationConfig | None) -> GenerationConfig:
    if config is None:
        return GenerationConfig()
    if not isinstance(config, GenerationConfig):
        raise VLMError("invalid_request", f"config is a {type(config).__name__}; give a GenerationConfig")
    return config
