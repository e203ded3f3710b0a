"""From jobs to rows of the batch: what takes long about a request is done here, beside the running batch.

Texts are tokenised, and pictures fetched and decoded, in a thread for each request; a picture that is slow to come
holds up no other. Pictures are encoded one after another: two requests about one picture find it encoded once.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import torch

from vision_encoder.decode_worker import DecodeWorker
from vision_encoder.image_input import encoded_bytes
from vlm.errors import VLMError, public
from vlm.generation.reply import ReplyText
from vlm.generation.sampling import DEFAULT_MAX_NEW_TOKENS, GenerationConfig, Sampler
from vlm.images.fetch import Fetcher
from vlm.pipeline import VLM
from vlm.prompt import Prompt
from vlm.request import RequestReader
from vlm.serving.model_process.job import Failed, Job
from vlm.serving.model_process.running_batch import Row
from vlm.serving.settings import EngineOptions

logger = logging.getLogger(__name__)

MAX_DECODERS = 4
"""Pictures that are decoded at once, each in a process of its own."""
_INTERNAL = "the server failed on this request; it is noted in its log; try again, or ask for something else"


class JobReader:
    """Reads jobs in threads of its own, and hands on what became of each."""

    def __init__(self, vlm: VLM, options: EngineOptions, done: Callable[[int, Row | Failed], None]):
        """`done(key, row)` is called from a thread when a job is read."""
        self._vlm, self._options, self._done = vlm, options, done
        self._requests = RequestReader(vlm.model, vlm.tokenizer, vlm.images)
        self._fetch = Fetcher() if options.allow_urls else None
        self._threads = ThreadPoolExecutor(options.num_slots, thread_name_prefix="read")
        self._futures: dict[int, Future] = {}
        self._encoding = threading.Lock()
        self._decoders: queue.LifoQueue[DecodeWorker] = queue.LifoQueue()
        if vlm.images is not None:
            for _ in range(min(MAX_DECODERS, options.num_slots)):
                self._decoders.put(DecodeWorker(limits=vlm.images.limits))

    def submit(self, key: int, job: Job) -> None:
        self._futures[key] = self._threads.submit(self._read, key, job)

    def forget(self, key: int) -> None:
        """Do not begin with a job that nobody waits for any more, or forget one that was read."""
        future = self._futures.pop(key, None)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """End the processes that decode pictures."""
        while not self._decoders.empty():
            self._decoders.get().close()

    def _read(self, key: int, job: Job) -> None:
        try:
            found = self._row(key, job)
        except VLMError as error:
            found = Failed(error.code, error.message)
        except BaseException:  # a panic in a library's Rust code is no Exception
            logger.exception("a request could not be read")
            found = Failed("internal_error", _INTERNAL)
        self._done(key, found)

    @public
    @torch.inference_mode()
    def _row(self, key: int, job: Job) -> Row:
        since = time.perf_counter()
        config = self._bounded(job.config)
        if job.parts is not None:
            prompt = self._requests.completion(job.parts)
        else:
            prompt = self._requests.chat(job.messages, continue_final=job.continue_final)
        room = self._requests.room(prompt, config.max_new_tokens)
        constraint = self._vlm.grammars.begin(config.schema)
        prompt = Prompt(prompt.ids, [self._picture(image) for image in prompt.images])
        with self._encoding:
            ready = self._requests.ready(prompt)
        return Row(
            key=key,
            prompt=ready,
            room=room,
            sampler=Sampler(config, ready.ids, self._vlm.device, constraint),
            text=ReplyText(self._vlm.tokenizer, config.stops),
            top_logprobs=job.top_logprobs,
            encode_s=time.perf_counter() - since,
        )

    def _bounded(self, config: GenerationConfig) -> GenerationConfig:
        most, asked = self._options.max_new_tokens, config.max_new_tokens
        if most is not None and asked is None and most < DEFAULT_MAX_NEW_TOKENS:
            return replace(config, max_new_tokens=most)
        if most is not None and asked is not None and asked > most:
            raise VLMError("invalid_request", f"{asked} new tokens were asked for; this server allows at most {most}")
        return config

    def _picture(self, image: object) -> object:
        """Return an image of a job as a decoded picture."""
        is_url = isinstance(image, str) and image[:8].lower().startswith(("data:", "http://", "https://"))
        if isinstance(image, str | os.PathLike) and not is_url:
            # A path would be one of the server's own files.
            raise VLMError("invalid_request", "an image is a path or another text; send it as a data: URL")
        content = encoded_bytes(image, limits=self._vlm.images.limits, fetch=self._fetch)
        with self._decoder() as decoder:
            return decoder.read_image(image if content is None else content)

    @contextmanager
    def _decoder(self) -> Iterator[DecodeWorker]:
        """Lend a decoder, the one used last: it has its process still."""
        decoder = self._decoders.get()
        try:
            yield decoder
        finally:
            self._decoders.put(decoder)
