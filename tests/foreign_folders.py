"""What the tests of other programs' folders share: a model whose rows are whole blocks, and folders made over."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoint_models import edit_json, random_model
from vlm import VLM, Tokenizer, preset
from vlm.checkpoint import load_model, save_model
from vlm.model import VisionLanguageModel


def wide_model() -> VisionLanguageModel:
    """Return the tiny model with rows of 64 and 128, which groups and blocks of 64 divide."""
    tiny = preset("tiny")
    decoder, vision = (replace(part, width=64, mlp_dim=128) for part in (tiny.decoder, tiny.vision))
    return random_model(replace(tiny, decoder=decoder, vision=vision))


def is_linear(name: str) -> bool:
    """Say whether transformers has the tensor of that name in a linear layer other than the head."""
    return name.endswith(("_proj.weight", "fc1.weight", "fc2.weight", "projector.weight"))


def make_over(
    model: VisionLanguageModel,
    folder: Path,
    quantize: Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor] | None],
    save: Callable[[dict, Path], None] = save_file,
    **settings,
) -> Path:
    """Write a folder of quantised weights, and return another with the values that they stand for.

    quantize: gives for the name of a tensor and its values what is stored and what it stands for, or None.
    """
    twin = folder.with_name(f"{folder.name} expanded")
    for path in (folder, twin):
        save_model(model, path)
    stored, expanded = {}, {}
    for name, tensor in load_file(twin / "model.safetensors").items():
        parts, expanded[name] = quantize(name, tensor) or ({name: tensor}, tensor)
        stored |= parts
    save(stored, folder / "model.safetensors")
    save_file(expanded, twin / "model.safetensors")
    edit_json(folder / "config.json", lambda found: found.update(settings))
    return twin


def difference(folder: Path, twin: Path, messages: list, **how) -> float:
    """Return by how much the logits of two folders differ, beside the largest of them."""
    found, expected = (
        torch.cat([VLM(load_model(path, **how), Tokenizer.bytes_only()).logits(prompt) for prompt in messages])
        for path in (folder, twin)
    )
    return ((found - expected).abs().max() / expected.abs().max()).item()
