"""A checkpoint of random weights in a folder, written tensor by tensor: what people have on their disks."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vlm.bench.random_models import random_tensor, shaped_model
from vlm.checkpoint import empty_model
from vlm.checkpoint.hf_writing import write_hf
from vlm.config import ModelConfig
from vlm.quantization import PRECISIONS, QuantizedWeight, plan
from vlm.tokenizer import Tokenizer

_FILE_BYTES = 5e9


class RandomWeights:
    """Random weights of a model, each made when it is asked for; see `hf_writing.Weights`."""

    dtype = torch.bfloat16

    def __init__(self, config: ModelConfig, precision: str, step: Callable[[], object]):
        plain = empty_model(config)
        self.config, self.shapes = config, plain.state_dict()
        self.schemes = plan(plain, precision) if precision in PRECISIONS else {}
        self._model, self._step = shaped_model(config, precision), step

    def dtype_of(self, name: str) -> torch.dtype:
        return self.dtype

    def read(self, name: str) -> Tensor:
        self._step()
        return random_tensor(self._model, name)

    def read_quantized(self, layer: str) -> QuantizedWeight:
        self._step()
        parts = {part: random_tensor(self._model, f"{layer}.{part}") for part in ("codes", "scales")}
        return QuantizedWeight(**parts)

    def size(self, layer: str) -> tuple[int, int]:
        return tuple(self.shapes[f"{layer}.weight"].shape)


def num_tensors(config: ModelConfig) -> int:
    """Return how many tensors, or quantised layers, are written of a model."""
    return len(empty_model(config).state_dict())


def write_random(config: ModelConfig, folder: Path, precision: str, step: Callable[[], object] = lambda: None) -> None:
    """Write a Hugging Face folder of random weights with a tokenizer of single bytes, whole or not at all.

    precision: "bfloat16", "int8" or "int4". step is called for each tensor.
    """
    tokenizer = Tokenizer.bytes_only()

    def write_more(staging: Path) -> None:
        for name, content in tokenizer.files("hf").items():
            (staging / name).write_bytes(content)

    write_hf(RandomWeights(config, precision, step), folder, _FILE_BYTES, write_more, tokenizer)
