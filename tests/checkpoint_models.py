"""Small random models for the tests of checkpoints, and Meta's own rule for dividing a state into files."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import conftest
from vlm.config import DecoderConfig, ModelConfig, RopeScaling, preset
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel


def text_config(*, tied: bool = False) -> ModelConfig:
    decoder = DecoderConfig(
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mlp_dim=48,
        vocab_size=512,
        tied=tied,
        rope_scaling=RopeScaling(factor=32.0, original_context=64),
        max_context=512,
    )
    return ModelConfig(decoder=decoder)


def eight_heads() -> ModelConfig:
    """A tiny model that eight processes can share."""
    tiny = preset("tiny")
    return replace(
        tiny,
        decoder=replace(tiny.decoder, width=64, num_heads=8, num_kv_heads=8, mlp_dim=64),
        vision=replace(tiny.vision, width=32, num_heads=8, mlp_dim=64),
    )


def random_model(config: ModelConfig | None = None, seed: int = 0) -> VisionLanguageModel:
    """Return a model with every weight drawn; its position tables are spread from cells."""
    return conftest.random_model(config or preset("tiny"), seed)


def assert_same(found: VisionLanguageModel | dict, expected: VisionLanguageModel | dict) -> None:
    """Every tensor of one is in the other, bit for bit."""
    found, expected = (state if isinstance(state, dict) else state.state_dict() for state in (found, expected))
    assert set(found) == set(expected)
    differing = [
        name for name, tensor in expected.items() if tensor.dtype != found[name].dtype or not tensor.equal(found[name])
    ]
    assert not differing


def refusal(function, *arguments, **named) -> VLMError:
    """Return the error of a checkpoint that `function` refuses, after a look at its form."""
    with pytest.raises(VLMError) as caught:
        function(*arguments, **named)
    error = caught.value
    assert error.code == "checkpoint_invalid"
    assert len(error.message) <= 300
    assert not re.search(r"Traceback|site-packages|\.py\b|vlm/checkpoint|0x[0-9a-f]{2}", error.report)
    return error


def edit_json(path: Path, change) -> None:
    """Rewrite a JSON file after `change` has worked on its object."""
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def meta_split_axes(model: torch.nn.Module) -> dict[str, int | None]:
    """Along which axis model-parallel processes divide each tensor of a model of Meta's, told from its modules.

    Source: fairscale nn/model_parallel/layers.py: partition_dim of each class, and which of them divides its bias.
    """
    from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding

    rules = {
        ColumnParallelLinear: {"weight": 0, "bias": 0},
        RowParallelLinear: {"weight": 1, "bias": None},
        VocabParallelEmbedding: {"weight": 0},
    }
    axes: dict[str, int | None] = dict.fromkeys(model.state_dict())
    for prefix, module in model.named_modules():
        for name, axis in rules.get(type(module), {}).items():
            if f"{prefix}.{name}" in axes:
                axes[f"{prefix}.{name}"] = axis
    return axes


def write_split(whole: dict[str, Tensor], axes: dict[str, int | None], count: int, folder: Path) -> None:
    """Write `whole` as the files of `count` processes."""
    for rank in range(count):
        parts = {
            name: tensor if axes[name] is None else tensor.tensor_split(count, axes[name])[rank].clone()
            for name, tensor in whole.items()
        }
        torch.save(parts, folder / f"consolidated.{rank:02d}.pth")
