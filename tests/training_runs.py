"""A tiny checkpoint with samples to learn from, runs on them, and what such a run leaves, for the tests of the loop."""

from pathlib import Path

import torch

from tests.conftest import random_model
from tests.training_rows import draw_pictures, write_jsonl
from vlm import VLM, Tokenizer, preset
from vlm.training.config import TrainConfig
from vlm.training.journal import read_lines
from vlm.training.loop import Training
from vlm.training.settings import build

ROOT = Path(__file__).parent.parent
TIMES = ("elapsed_s",)
TOML = """
out = "{out}"
steps = 6
batch_size = 4
[model]
source = "{place}/model"
[[data]]
path = "{place}/talk.jsonl"
[trained.lora]
rank = 4
targets = ["*_proj"]
[optimizer]
lr = 0.02
"""


def write_model_and_talk(folder: Path) -> Path:
    """Write a tiny checkpoint with open gates, and samples of unequal length, some with images, one of them poison."""
    VLM(random_model(preset("tiny")), Tokenizer.bytes_only()).save_pretrained(folder / "model")
    draw_pictures(folder, {"a.png": 30, "b.png": 200})
    rows = []
    for number in range(9):
        text = f"say {number} " * (1 + number % 3)
        content = [{"type": "text", "text": text}]
        if number % 2:
            content.insert(0, {"type": "image", "image": "ab"[number % 4 // 2] + ".png"})
        if number == 5:
            content.insert(0, {"type": "image", "image": "missing.png"})
        reply = {"role": "assistant", "content": f"{number}" * (1 + number % 4)}
        rows.append({"id": f"talk-{number}", "messages": [{"role": "user", "content": content}, reply]})
    write_jsonl(folder / "talk.jsonl", rows)
    write_jsonl(folder / "more.jsonl", [dict(row, id=f"more-{place}") for place, row in enumerate(rows[:3])])
    return folder


def settings(place: Path, out: Path, **changes) -> TrainConfig:
    values = {
        "out": str(out),
        "model": {"source": str(place / "model")},
        "data": [{"path": str(place / "talk.jsonl")}, {"path": str(place / "more.jsonl"), "weight": 4}],
        "optimizer": {"lr": 2e-3},
        "schedule": {"name": "cosine", "warmup_steps": 2},
        "checkpoints": {"every": 3, "keep": 2},
        "steps": 10,
        "batch_size": 4,
    }
    return build(TrainConfig, values | changes)


def lora(dropout: float = 0.3) -> dict:
    return {"trained": {"lora": {"rank": 2, "dropout": dropout, "targets": ["q_proj", "v_proj"]}}}


def log_of(out: Path) -> list[dict]:
    """Return the log without what the clock says."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_lines(out / "log.jsonl")]


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in training.weights.items()}
