"""The rows of the GPU's benchmark on a small model, with the CPU in the GPU's place: time on a real one is dear."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from vlm.config import preset


@pytest.fixture(autouse=True)
def cpu_in_the_gpus_place(monkeypatch):
    def seconds(call, *, times=20):
        call()
        return 1e-3

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "seconds", seconds)
    monkeypatch.setattr(gpu, "_SIDE", 64)
    monkeypatch.setattr(gpu, "_COPIED", 1 << 12)
    monkeypatch.setattr(gpu, "_PROMPT", 16)
    monkeypatch.setattr(gpu, "_NEW_TOKENS", 16)
    monkeypatch.setattr(gpu, "BATCHES", (1, 3))
    monkeypatch.setattr(gpu, "CONTEXTS", (20, 100))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1 << 36))
    for name in ("set_per_process_memory_fraction", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: 1 << 30)
    gpu.limits.cache_clear()
    gpu.model_on_gpu.cache_clear()
    yield
    gpu.limits.cache_clear()
    gpu.model_on_gpu.cache_clear()


@pytest.mark.parametrize("row", [name for name in gpu.ROWS if name != "shipped"])
def test_a_row_gives_figures(row):
    with torch.inference_mode():
        found = gpu.ROWS[row](preset("tiny"))
    assert found
    assert all(value >= 0 for value in found.values())


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_a_model_in_less_memory_answers(quantize, tmp_path):
    found = gpu.capped(preset("tiny"), Namespace(gigabytes=24, quantize=quantize, dir=tmp_path))
    assert found[f"24 GB, {quantize}, first token, s"] > 0
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    gpu.main()
    assert capsys.readouterr().out == '{"not run": "no CUDA GPU was found"}\n'
