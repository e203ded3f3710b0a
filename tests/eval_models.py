"""Samples, prompts, and small models that do harm on command, for the tests of the harness."""

import io
import json
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image

from eval.backends import Answer, Asked, Failure, Question
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


def write_chart_questions(folder: Path, num_samples: int, *, changed: dict[int, dict] | None = None) -> Path:
    """Write JSON lines in ChartQA's manner, three questions a picture, and return the file.

    changed: fields of some questions, by number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(num_samples):
        name = f"{number // 3}.png"
        if not (folder / name).exists():
            (folder / name).write_bytes(picture(number // 3))
        row = {"id": f"q{number}", "image": name, "question": f"Value {number}?", "answer": str(number)}
        row["split"] = "human" if number % 2 else "augmented"
        lines.append(json.dumps({**row, **(changed or {}).get(number, {})}))
    path = folder / "test.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass
class EchoBackend:
    """Answers at once with the number in the question, and notes what it was asked."""

    weights: str = "w"
    batch_size: int = 4
    generation: dict = field(default_factory=lambda: {"temperature": 0})
    stops_after: int | None = None
    """Raises, as if interrupted, when it has answered so many."""
    asked: list[list[str]] = field(default_factory=list)
    name: str = "echo"

    def __enter__(self) -> "EchoBackend":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def describe(self) -> dict:
        return {"backend": "echo", "name": self.name, "weights": self.weights}

    def answers(self, batches):
        count = 0
        for batch in batches:
            self.asked.append([each.sample.id for each in batch])
            for each in batch:
                if count == self.stops_after:
                    raise KeyboardInterrupt
                if "FAIL" in each.sample.question:
                    yield Asked(each, Failure(reason="it fails"))
                else:
                    text = "".join(filter(str.isdigit, each.sample.question))
                    yield Asked(each, Answer(text=text, token_ids=(1,), finish_reason="stop"))
                count += 1
