"""Adapters over quantised weights: gradients pass them, and the weights neither move nor take memory for it."""

import copy
import json
import sys

import pytest
import torch
from torch import nn

from adapters.lora import LoRAConfig, adapters_of, add_adapter
from benchmarks.qlora_memory import LiveBytes, adapted, count_step, main
from tests.nearness import difference
from tests.oracles import ours
from tests.oracles.cases import CONFIGS, build_case
from tests.oracles.weights import random_hf_state
from tests.training_rows import row_of, write_jsonl
from vlm import VLM, Tokenizer, VLMError, preset
from vlm.model import VisionLanguageModel
from vlm.quantization import quantize_model, quantized_layers
from vlm.training.config import TrainConfig
from vlm.training.frozen import let_gradients_through
from vlm.training.journal import read_lines
from vlm.training.loop import Training
from vlm.training.rows import reply_log_probabilities
from vlm.training.settings import build
from vlm.training.trained import train_adapter

CONFIG = CONFIGS["default"]


def with_adapters(precision: str | None) -> tuple[VisionLanguageModel, VisionLanguageModel]:
    """Return a quantised model with adapters, and one with plain layers of the same expanded weights."""
    model = ours.build(*random_hf_state(CONFIG))
    quantize_model(model, precision, group_size=32)
    twin = copy.deepcopy(model)
    for name, layer in quantized_layers(twin).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = nn.Parameter(layer.weight)
        twin.set_submodule(name, plain)
    let_gradients_through(model)
    for one in (model, twin):
        torch.manual_seed(0)
        one.requires_grad_(False)
        for adapter in add_adapter(one, LoRAConfig(rank=2, targets=("*_proj", "head"))).values():
            nn.init.normal_(adapter.up, std=0.1)
    return model, twin


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_gradients_are_those_over_the_expanded_weights(precision):
    row = row_of(build_case(CONFIG, "two_images_apart"), CONFIG.vocab_size)
    grads = []
    for model in with_adapters(precision):
        loss = -reply_log_probabilities(model, [row], CONFIG.marker).sum()
        loss.backward()
        grads.append({place: one.down.grad for place, one in adapters_of(model, "default").items()} | {"loss": loss})
    assert len(grads[0]) > 40
    for place, expected in grads[1].items():
        assert difference(grads[0][place].detach(), expected.detach()) < 1e-4, place


def test_nothing_expanded_is_kept_for_the_way_back():
    model, twin = with_adapters("int4")
    layer, plain = (one.decoder.layers[0].mlp.up_proj for one in (model, twin))
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = torch.randn(3, layer.in_features, requires_grad=True)
        layer(x)
        kept, sizes = max(sizes), []
        plain(x)
    assert kept < plain.weight.numel() <= max(sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains_an_adapter_over_four_bits_that_fits_the_plain_model(tmp_path, dtype):
    torch.manual_seed(0)
    source = VisionLanguageModel(preset("tiny"))
    VLM(source, Tokenizer.bytes_only()).save_pretrained(tmp_path / "model")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ab"}]
    values = {
        "out": str(tmp_path / "run"),
        "model": {"source": str(tmp_path / "model"), "quantize": "int4", "dtype": dtype},
        "data": [{"path": str(write_jsonl(tmp_path / "talk.jsonl", [{"messages": talk}] * 2))}],
        "trained": {"lora": {"rank": 4, "targets": ["*_proj", "head"]}},
        "optimizer": {"lr": 3e-2},
        "steps": 15,
        "batch_size": 2,
        "recompute": True,
    }
    training = Training(build(TrainConfig, values))
    before = {name: layer.codes.clone() for name, layer in quantized_layers(training.model).items()}
    report = training.train()
    losses = [row["loss"] for row in read_lines(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < losses[0] - 2
    assert all(torch.equal(layer.codes, before[name]) for name, layer in quantized_layers(training.model).items())
    assert {weight.dtype for weight in training.weights.values()} == {torch.float32}
    model = VLM.from_pretrained(tmp_path / "model", device="cpu")
    model.load_adapter(report.result)
    assert model.chat(talk[:1]).text.startswith("a")


def test_frozen_precisions_are_for_adapters_alone(tmp_path):
    values = {"out": str(tmp_path), "model": {"preset": "tiny", "quantize": "int8"}, "data": [{"path": "a.jsonl"}]}
    with pytest.raises(VLMError, match="are for frozen weights; train an adapter"):
        build(TrainConfig, values)


def test_views_of_weights_are_not_counted_as_passing():
    weight, x = torch.empty(8, 8, device="meta"), torch.empty(2, 8, device="meta")
    with LiveBytes([weight]) as live:
        product = x @ weight.t()
    assert live.peak == product.nbytes


@pytest.mark.parametrize("recompute", [False, True])
def test_bytes_counted_without_values_are_those_of_a_real_step(recompute):
    counted = []
    for device in ("meta", "cpu"):
        model = adapted(preset("tiny"), None, rank=4)
        if device == "cpu":
            model = VisionLanguageModel(preset("tiny")).to(torch.bfloat16)
            train_adapter(model, LoRAConfig(rank=4, targets=("decoder.layers.*_proj",)))
        counted.append(count_step(model, num_tokens=200, num_learned=50, recompute=recompute))
    assert counted[0][:2] == counted[1][:2]
    assert counted[0].passing == pytest.approx(counted[1].passing, rel=0.02)


def test_the_table_of_all_precisions_ends_in_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qlora_memory", "tiny"])
    main()
    *_, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    frozen = {row["frozen_weights"]: row["frozen_bytes"] for row in rows}
    assert len(rows) == 6
    assert frozen["int4"] < frozen["int8"] < frozen["bfloat16"]
    assert all(rows[place + 1]["passing_bytes"] < rows[place]["passing_bytes"] for place in (0, 2, 4))
