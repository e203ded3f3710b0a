"""Questions per second: the harness beside a loop over transformers' generate, and beside one over `model.answer`.

    python -m benchmarks.eval_throughput [--questions 250] [--model FOLDER] [--dtype float32]

The charts are those that ship (examples/benchmark), several questions a chart. Weights, dtype and prompt ids are the
same on all sides, replies are greedy and of at most as many tokens. The order of features is put right in transformers'
model (as `vlm verify` does) and its processor gets the numbers that pixels are normalised with, so that all have the
same replies to write. The loops do what people write: open the picture, ask, one question after the other; so
transformers encodes a picture again for each question, and `model.answer` finds it in its cache. The harness encodes a
picture once, answers in batches, and writes each answer to the disk. Loading is left out on all sides.

Replies are compared with those of `model.answer`. In float32 a batch must give the same replies as one question at a
time. In bfloat16 it need not: sums in another order round differently, and where the two likeliest tokens are nearer to
each other than a step of that dtype, either may win. So for each reply that differs the gap between the two best logits
is printed, at the first token that differs, beside the size of such a step there. The last line is JSON.
"""

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# As the harness has it for its model: threads that wait by spinning slow down what runs beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from transformers import MllamaImageProcessorPil

from eval import tasks
from eval.backends.checkpoint_model import CheckpointModel
from eval.backends.local import LocalBackend
from eval.records import Sample
from eval.run.folder import RunFolder
from eval.run.journal import read_journal
from eval.run.runner import RunSettings, run
from eval.run.selection import Selection
from vision_encoder.preprocess import MEAN, STD
from vlm import VLM, GenerationConfig
from vlm.machine import hardware
from vlm.pipeline import DEFAULT_MODEL
from vlm.request import question_about
from vlm.verify import transformers_oracle

CHARTS = Path(__file__).parent.parent / "examples" / "benchmark" / "chartqa"
Replies = dict[str, list[int]]
"""Token ids by sample."""


class Side(NamedTuple):
    """Who answered, and how."""

    name: str
    seconds: float
    replies: Replies


class TimedBackend(LocalBackend):
    """The harness's model, which notes when the first question is put to it and the last is answered."""

    seconds = 0.0

    def answers(self, batches) -> Iterator:
        begun = time.perf_counter()
        yield from super().answers(batches)
        self.seconds = time.perf_counter() - begun


def through_the_harness(model: str | None, dtype: str, num_questions: int) -> tuple[float, Replies]:
    """Return the seconds of answering, records on the disk included, and the replies."""
    backend = TimedBackend(CheckpointModel(source=model, dtype=dtype), generation={"temperature": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(data={"chartqa": CHARTS}, out=Path(folder), selection=Selection(limit=num_questions))
        run(settings, backend, show_progress=False)
        records = list(read_journal(RunFolder(folder).journal_path(None)))
    return backend.seconds, {record.id: list(record.token_ids or ()) for record in records}


def one_by_one(samples: Sequence[Sample], reply: Callable[[Sample], list[int]]) -> tuple[float, Replies]:
    """Return the seconds and the replies of a loop over `samples`."""
    begun = time.perf_counter()
    replies = {sample.id: reply(sample) for sample in samples}
    return time.perf_counter() - begun, replies


def words(sample: Sample) -> str:
    """Return what the harness says about the picture."""
    return tasks.find("chartqa").prompt(sample).messages[0]["content"][-1]["text"]


class Transformers:
    """One question at a time through transformers."""

    def __init__(self, folder: Path, ours: VLM, samples: Sequence[Sample], max_new_tokens: int):
        """Prompt ids are made here, for they are the same as ours."""
        config = ours.model.config.vision
        self.model = transformers_oracle.load(folder, has_vision=True, dtype=ours.info.dtype, device=ours.device)
        transformers_oracle.repair(self.model)
        # The library's own mean and spread are 0.5, which no checkpoint uses; with PIL the pixels are ours exactly.
        self.processor = MllamaImageProcessorPil(
            size={"height": config.tile_size, "width": config.tile_size},
            max_image_tiles=config.max_tiles,
            image_mean=list(MEAN),
            image_std=list(STD),
        )
        self.max_new_tokens = max_new_tokens
        self.ids = {sample.id: ours.prompt_ids(asked(sample)) for sample in samples}

    @torch.inference_mode()
    def reply(self, sample: Sample) -> list[int]:
        """Return the ids of the reply without the one that ends it."""
        from PIL import Image

        ids, device = self.ids[sample.id], self.model.device
        picture = Image.open(sample.images[0].path).convert("RGB")
        seen = dict(self.processor(picture, return_tensors="pt"))
        num_tiles = seen.pop("num_tiles")[0][0]
        seen["pixel_values"] = seen["pixel_values"].to(self.model.dtype)
        mask = torch.zeros(1, len(ids), 1, self.processor.max_image_tiles, dtype=torch.long, device=device)
        mask[:, ids.index(self.model.config.image_token_index) :, :, : int(num_tiles)] = 1
        prompt = torch.tensor([ids], device=device)
        out = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            cross_attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            **{name: value.to(device) for name, value in seen.items()},
        )
        written = out[0, len(ids) :].tolist()
        return written[:-1] if written[-1] in self.model.generation_config.eos_token_id else written


def asked(sample: Sample) -> list[dict]:
    """Return the conversation that asks about `sample`."""
    return question_about(sample.images[0].read(), words(sample))


def parting(model: VLM, sample: Sample, first: list[int], second: list[int]) -> str:
    """Return where two replies part, and how near the two best tokens are there."""
    pairs = enumerate(zip([*first, None], [*second, None], strict=False))
    shared = next(place for place, (token, other) in pairs if token != other)
    begun = [{"role": "assistant", "content": model.tokenizer.decode(first[:shared])}] if shared else []
    best, other = model.logits(asked(sample) + begun, continue_final=bool(shared))[-1].topk(2).values.tolist()
    step = torch.finfo(model.info.dtype).eps * 2 ** math.floor(math.log2(abs(best)))
    return f"{sample.id}: at token {shared} the best two logits are {best - other:.4f} apart, a step is {step:.2g}"


def measured(
    model: str | None, dtype: str, samples: Sequence[Sample], max_new_tokens: int
) -> Iterator[tuple[Side, int]]:
    """Yield each side with its number of replies that differ from those of `model.answer`, and print them."""
    harness = Side("harness", *through_the_harness(model, dtype, len(samples)))
    folder = Path(model or DEFAULT_MODEL)
    ours = VLM.from_pretrained(folder, dtype=dtype)
    greedy = GenerationConfig(max_new_tokens=max_new_tokens)
    alone = Side(
        "answer",
        *one_by_one(samples, lambda each: ours.answer(each.images[0].path, words(each), config=greedy).token_ids),
    )
    theirs = Transformers(folder, ours, samples, max_new_tokens)
    sides = [harness, alone, Side("transformers", *one_by_one(samples, theirs.reply))]
    for side in sides:
        differ = [each for each in samples if side.replies[each.id] != alone.replies[each.id]]
        print(f"    {side.name:14}{len(samples) / side.seconds:8.2f} questions a second", end="")
        print(f"{side.seconds / harness.seconds:8.2f} times the harness's time", end="")
        print(f"{len(samples) - len(differ):8} of {len(samples)} replies as alone")
        for each in differ:
            print(" " * 8 + parting(ours, each, alone.replies[each.id], side.replies[each.id]))
        yield side, len(differ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=250)
    parser.add_argument("--model", help="a Hugging Face folder; the shipped model where none is given")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    task = tasks.find("chartqa")
    samples = list(task.load(CHARTS, limit=arguments.questions))
    num, max_new_tokens = len(samples), task.prompt(samples[0]).max_new_tokens
    device = hardware()
    print(f"{device}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, Python {platform.python_version()}, {arguments.dtype}")
    print(f"{num} questions about {len({each.cluster for each in samples})} charts, at most {max_new_tokens} tokens")
    figures = {"questions": num, "max_new_tokens": max_new_tokens, "dtype": arguments.dtype, "device": device}
    seconds = {}
    for side, num_differ in measured(arguments.model, arguments.dtype, samples, max_new_tokens):
        seconds[side.name] = side.seconds
        figures |= {f"{side.name}_per_s": num / side.seconds, f"{side.name}_same_as_alone": num - num_differ}
    figures["ratio"] = seconds["transformers"] / seconds["harness"]
    figures["ratio_to_answer"] = seconds["answer"] / seconds["harness"]
    print(json.dumps({**figures, "torch": torch.__version__, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
