"""Samples, prompts, and small models that do harm on command, for the tests of the harness."""

import io
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from eval.backends import Question
from eval.backends.checkpoint_model import CheckpointModel
from eval.records import ImageRef, Prompt, Sample
from tests.conftest import random_model
from vlm import VLM, Tokenizer, preset


def save_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model whose replies are text and never end by themselves."""
    config = preset("tiny")
    config = replace(config, decoder=replace(config.decoder, max_context=4096))
    model = random_model(config, seed)
    with torch.no_grad():
        model.decoder.head.weight[128:] = 0
    VLM(model, Tokenizer.bytes_only()).save_pretrained(folder)
    return folder


def picture(number: int = 0) -> bytes:
    """Return a small PNG; each number has its own pixels and size."""
    content = io.BytesIO()
    image = Image.linear_gradient("L").resize((30 + number % 7, 25 + number % 5)).convert("RGB")
    image.putpixel((0, 0), (number % 256, number // 256 % 256, 9))
    image.save(content, format="PNG")
    return content.getvalue()


def image(number: int = 0) -> ImageRef:
    return ImageRef(id=f"{number}.png", data=picture(number))


def question(
    number: int, text: str = "What is it?", *, images: tuple[ImageRef, ...] | None = None, **named
) -> Question:
    """Return a question about one picture, which three questions in a row share."""
    images = (image(number // 3),) if images is None else images
    prompt_settings = {name: named.pop(name) for name in ("prefill", "max_new_tokens") if name in named}
    sample = Sample(
        **{"id": f"q{number}", "task": "invented", "targets": ("yes",), "images": images, "question": text, **named}
    )
    parts = [*({"type": "image", "image": each} for each in images), {"type": "text", "text": f"{text} {number}"}]
    prompt = Prompt(
        messages=[{"role": "user", "content": parts}], name="plain", **{"max_new_tokens": 4, **prompt_settings}
    )
    return Question(sample, prompt)


@dataclass(frozen=True, kw_only=True)
class HarmfulModel(CheckpointModel):
    """A checkpoint whose process comes to harm at words in a question.

    KILL kills it, HANG never returns, CRASH raises, HUNGRY runs out of memory in any company, and so does every batch
    of more than `max_rows`. Each call is noted in the file `calls`, as its number of rows.
    """

    max_rows: int | None = None
    calls: Path | None = None
    dies_after: int | None = None
    """The process is killed at every call after so many."""

    def open(self) -> VLM:
        model = super().open()
        chat_many, count = model.chat_many, 0

        def harmful(conversations, **named):
            nonlocal count
            count += 1
            texts = [str(conversation) for conversation in conversations]
            if self.calls is not None:
                with open(self.calls, "a") as file:
                    file.write(f"{len(texts)}\n")
            if any("KILL" in text for text in texts) or (self.dies_after is not None and count > self.dies_after):
                os.kill(os.getpid(), signal.SIGKILL)
            if any("HANG" in text for text in texts):
                time.sleep(1000)
            if any("CRASH" in text for text in texts):
                raise ZeroDivisionError("a sample that the library cannot bear")
            too_many = self.max_rows is not None and len(texts) > self.max_rows
            if too_many or any("HUNGRY" in text for text in texts):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return chat_many(conversations, **named)

        model.chat_many = harmful
        return model
