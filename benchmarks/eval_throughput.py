"""Questions per second: the harness beside a plain loop over transformers' generate, the same questions in one run.

    python -m benchmarks.eval_throughput [--questions 250] [--model FOLDER]

The charts are those that ship (examples/benchmark), several questions a chart. Weights and prompt ids are the same on
both sides, replies are greedy and of at most as many tokens; transformers' MllamaForConditionalGeneration has its order
of features put right (as `vlm verify` does), so that both have the same replies to write. The loop does what people
write: open the picture, let the processor cut it up, call generate, one question after the other; so each question
encodes its picture again. The harness encodes a picture once, answers in batches, and writes each answer to the disk.
Loading is left out on both sides. The last line is JSON.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# As the harness has it for its model: threads that wait by spinning slow down what runs beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from transformers import MllamaImageProcessor

from eval import tasks
from eval.backends.checkpoint_model import CheckpointModel
from eval.backends.local import LocalBackend
from eval.journal import read_journal
from eval.records import Sample
from eval.run_folder import RunFolder
from eval.runner import RunSettings, run
from eval.selection import Selection
from vlm import VLM
from vlm.pipeline import DEFAULT_MODEL
from vlm.verify import transformers_oracle

CHARTS = Path(__file__).parent.parent / "examples" / "benchmark" / "chartqa"


class TimedBackend(LocalBackend):
    """The harness's model, which notes when the first question is put to it and the last is answered."""

    seconds = 0.0

    def answers(self, batches) -> Iterator:
        begun = time.perf_counter()
        yield from super().answers(batches)
        self.seconds = time.perf_counter() - begun


def through_the_harness(model: str | None, num_questions: int) -> tuple[float, dict[str, str]]:
    """Return the seconds of answering, records on the disk included, and the replies by their samples."""
    backend = TimedBackend(CheckpointModel(source=model, dtype="float32"), generation={"temperature": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(data={"chartqa": CHARTS}, out=Path(folder), selection=Selection(limit=num_questions))
        run(settings, backend, show_progress=False)
        records = list(read_journal(RunFolder(folder).journal_path(None)))
    return backend.seconds, {record.id: record.prediction or "" for record in records}


class PlainLoop:
    """One question after the other through transformers."""

    def __init__(self, folder: Path):
        ours = VLM.from_pretrained(folder, dtype="float32")
        config = ours.model.config.vision
        self.ours = ours
        self.model = transformers_oracle.load(folder, has_vision=True, dtype=torch.float32, device=ours.device)
        transformers_oracle.repair(self.model)
        size = {"height": config.tile_size, "width": config.tile_size}
        self.processor = MllamaImageProcessor(size=size, max_image_tiles=config.max_tiles)

    @torch.inference_mode()
    def reply(self, sample: Sample, ids: list[int], max_new_tokens: int) -> str:
        from PIL import Image

        picture = Image.open(sample.images[0].path).convert("RGB")
        seen = dict(self.processor(picture, return_tensors="pt"))
        num_tiles = seen.pop("num_tiles", [[1]])[0][0]
        marker = self.model.config.image_token_index
        first = ids.index(marker)
        mask = torch.zeros(1, len(ids), 1, self.processor.max_image_tiles, dtype=torch.long, device=self.model.device)
        mask[:, first:, :, : int(num_tiles)] = 1
        prompt = torch.tensor([ids], device=self.model.device)
        out = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            cross_attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            **{name: value.to(self.model.device) for name, value in seen.items()},
        )
        return self.ours.tokenizer.decode(out[0, len(ids) :].tolist(), skip_special=True)

    def all(self, samples: Sequence[Sample], max_new_tokens: int) -> tuple[float, dict[str, str]]:
        """Return the seconds and the replies; prompt ids are made before, for both sides share them."""
        task = tasks.find("chartqa")
        ids = {}
        for sample in samples:
            text = task.prompt(sample).messages[0]["content"][-1]["text"]
            parts = [{"type": "image", "image": sample.images[0].read()}, {"type": "text", "text": text}]
            ids[sample.id] = self.ours.prompt_ids([{"role": "user", "content": parts}])
        begun = time.perf_counter()
        replies = {sample.id: self.reply(sample, ids[sample.id], max_new_tokens) for sample in samples}
        return time.perf_counter() - begun, replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=250)
    parser.add_argument("--model", help="a Hugging Face folder; the shipped model where none is given")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    task = tasks.find("chartqa")
    samples = list(task.load(CHARTS, limit=arguments.questions))
    max_new_tokens = task.prompt(samples[0]).max_new_tokens
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(f"{device}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, Python {platform.python_version()}")
    harness_s, ours = through_the_harness(arguments.model, arguments.questions)
    loop_s, theirs = PlainLoop(Path(arguments.model or DEFAULT_MODEL)).all(samples, max_new_tokens)
    num, pictures = len(samples), len({sample.cluster for sample in samples})
    same = sum(ours[sample.id].strip() == theirs[sample.id].strip() for sample in samples)
    print(f"{num} questions about {pictures} charts, replies of at most {max_new_tokens} tokens")
    print(f"    harness             {num / harness_s:8.2f} questions a second")
    print(f"    transformers' loop  {num / loop_s:8.2f}")
    print(f"    ratio               {loop_s / harness_s:8.2f}        {same} of {num} replies equal")
    figures = {"questions": num, "charts": pictures, "max_new_tokens": max_new_tokens, "same_replies": same}
    rates = {"harness_per_s": num / harness_s, "transformers_per_s": num / loop_s, "ratio": loop_s / harness_s}
    versions = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({**figures, **rates, **versions}))


if __name__ == "__main__":
    main()
