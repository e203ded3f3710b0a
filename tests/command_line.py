"""The command line as the tests call it, and a model and pictures for it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from click.testing import CliRunner, Result
from PIL import Image

from tests.conftest import random_model
from vlm import VLM, Tokenizer
from vlm.cli import main
from vlm.config import preset


def run(*arguments: object, standard_input: bytes | str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=standard_input)


def last_json(result: Result) -> dict:
    return json.loads(result.stdout.splitlines()[-1])


def process(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "vlm", *arguments], **options)


def asked(names: list[str], text: str) -> list[dict]:
    images = [{"type": "image", "image": name} for name in names]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def save_endless_model(path: Path) -> Path:
    """Save a checkpoint that never ends a reply by itself, and whose tokens are all text."""
    config = preset("tiny")
    config = replace(config, decoder=replace(config.decoder, max_context=2048))
    model = random_model(config)
    with torch.no_grad():
        model.decoder.head.weight[128:] = 0
    VLM(model, Tokenizer.bytes_only()).save_pretrained(path)
    return path


def draw_two_and_none(directory: Path) -> list[str]:
    """Draw two pictures, and a file that is none."""
    for index, size in enumerate([(40, 30), (60, 20)]):
        Image.linear_gradient("L").resize(size).rotate(90 * index, expand=True).save(directory / f"{index}.png")
    (directory / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return [str(directory / name) for name in ("0.png", "1.png", "broken.png")]
