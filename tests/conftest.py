"""Shared by all tests: no network, one thread a process, small random models with open gates."""

import os
import signal

# Set before torch is imported: on two busy cores, threads that wait for each other by spinning make tests slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU kernels are run by Triton's interpreter; to be said before Triton is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings

from vlm.config import ModelConfig, preset
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.tokenizer import Tokenizer

torch.set_num_threads(1)
# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# On a busy machine it is not the test that is slow.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def random_model(config: ModelConfig, seed: int = 0) -> VisionLanguageModel:
    """Return a model with random weights, its gates away from zero and its position tables as Meta's would be."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = VisionLanguageModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate"):
                weight.copy_(torch.rand(1, generator=generator) * 0.7 + 0.3)
            elif "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.2 * torch.randn(weight.shape, generator=generator))
            elif name.endswith("bias"):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
            elif name.endswith("table"):
                _fill_from_cells(weight, config.vision.canvases, config.vision.max_tiles, generator)
            elif name.endswith(("embedding", "embedding.weight")):
                weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    if model.encoder is not None:
        model.encoder.inspect_tables()
    return model.eval()


def _fill_from_cells(table, canvases, max_tiles, generator) -> None:
    """Fill a position table from one grid of cells, as Meta's checkpoints do; zeros where a canvas has no tile."""
    cells = 0.3 * torch.randn(max_tiles, max_tiles, *table.shape[2:], generator=generator)
    table.zero_()
    for index, (rows, cols) in enumerate(canvases):
        table[index + 1, : rows * cols] = cells[:rows, :cols].flatten(0, 1)


@pytest.fixture(scope="session")
def tiny_model() -> VisionLanguageModel:
    return random_model(preset("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_model) -> VLM:
    """A whole pipeline around the tiny model, with bytes as tokens."""
    return VLM(tiny_model, Tokenizer.bytes_only())
