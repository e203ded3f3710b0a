"""Small runs of training on several processes, each way, for the tests and the benchmark of them."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.conftest import random_model
from tests.training_rows import write_jsonl
from vlm import VLM, Tokenizer, preset
from vlm.config import ModelConfig
from vlm.training.config import TrainConfig
from vlm.training.loop import Training
from vlm.training.settings import build

STEPS = 20
TIMEOUT_S = 900

MODES: dict[str, dict] = {
    "single": {},
    "ddp": {"data": "ddp"},
    "fsdp": {"data": "fsdp"},
    "tensor-2": {"tensor": 2},
    "tensor-4": {"tensor": 4},
    "pipeline-2": {"pipeline": 2},
    "pipeline-4": {"pipeline": 4},
    "fsdp-tensor": {"data": "fsdp", "tensor": 2},
    "pipeline-ddp": {"data": "ddp", "pipeline": 2},
}
PROCESSES = {
    2: ("ddp", "fsdp", "tensor-2", "pipeline-2"),
    4: ("ddp", "fsdp", "tensor-4", "pipeline-4", "fsdp-tensor", "pipeline-ddp"),
}


def model_config() -> ModelConfig:
    """Return the tests' model with heads for four processes, and a vocabulary that no two can halve."""
    tiny = preset("tiny")
    decoder = dataclasses.replace(tiny.decoder, num_heads=8, num_kv_heads=4, vocab_size=513)
    vision = dataclasses.replace(tiny.vision, num_heads=4, num_local_layers=2, num_global_layers=1, feature_layers=(0,))
    return dataclasses.replace(tiny, decoder=decoder, vision=vision)


def write_inputs(folder: Path) -> None:
    """Write a model with open gates, and samples that processes share unevenly.

    Texts and replies are of unequal length; some have no picture, some a picture of two tiles; the second step has none
    at all, and one sample is poison.
    """
    VLM(random_model(model_config()), Tokenizer.bytes_only()).save_pretrained(folder / "model")
    random = np.random.default_rng(0)
    for name, size in (("a", (28, 28)), ("b", (28, 60))):
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = []
    for number in range(24):
        content: list[dict] = [{"type": "text", "text": f"say {number} " * (1 + number % 3)}]
        if number % 3 != 1 and number not in (4, 5, 6, 7):
            content.insert(0, {"type": "image", "image": "ab"[number % 2] + ".png"})
        if number == 9:
            content.insert(0, {"type": "image", "image": "missing.png"})
        reply = {"role": "assistant", "content": "ox" * (1 + number % 4)}
        rows.append({"id": f"talk-{number}", "messages": [{"role": "user", "content": content}, reply]})
    write_jsonl(folder / "talk.jsonl", rows)


def settings(folder: Path, out: str, **changes) -> dict:
    return {
        "out": str(folder / out),
        "model": {"source": str(folder / "model")},
        "data": [{"path": str(folder / "talk.jsonl")}],
        "optimizer": {"lr": 2e-3, "weight_decay": 0.1},
        "schedule": {"name": "constant", "warmup_steps": 2},
        "checkpoints": {"every": 10, "keep": 2},
        "steps": STEPS,
        "batch_size": 4,
        "micro_batch_size": 2,
        "shuffle": False,
        "device": "auto",
    } | changes


@contextlib.contextmanager
def started(count: int, run: Callable[..., None], *arguments) -> Iterator[list[BaseProcess]]:
    """Start `run` in so many processes with the environment of torchrun; whatever happens none is left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The library is imported once, by the process that forks all others.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["vlm.training.loop", "tests.conftest"])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    processes = []
    try:
        for rank in range(count):
            own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(server.Process(target=_in_environment, args=(own, run, *arguments)))
            processes[-1].start()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _in_environment(variables: Mapping[str, str], run: Callable[..., None], *arguments) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    run(*arguments)


def run_all(count: int, run: Callable[..., None], *arguments) -> None:
    """Have so many processes execute `run` together, each to a good end."""
    with started(count, run, *arguments) as processes:
        for process in processes:
            process.join(TIMEOUT_S)
        codes = [process.exitcode for process in processes]
    assert codes == [0] * count, f"processes ended with {codes}"


def train(changes: Mapping, folder: Path, out: str) -> None:
    """Go through a run, or through what is left of it; what one process executes."""
    Training(build(TrainConfig, settings(folder, out, **changes))).train()


def train_each(folder: Path, count: int, modes: Sequence[str]) -> None:
    for mode in modes:
        train({"parallel": MODES[mode]}, folder, f"{mode}-{count}")


def run_modes(folder: Path, count: int, modes: Sequence[str]) -> dict[str, list[dict]]:
    """Return the log of a run on `count` processes in each mode."""
    run_all(count, train_each, folder, count, modes)
    return {mode: read_log(folder / f"{mode}-{count}") for mode in modes}


def read_log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def worst_difference(found: list[dict], expected: list[dict], name: str = "loss") -> float:
    """Return the largest difference of a figure over all steps."""
    return max(abs(one[name] - other[name]) for one, other in zip(found, expected, strict=True))
