"""A decode step on a GPU, by kernels and replayed, gives what the layers give one by one; and when it is not taken."""

import copy
import logging
import pickle
from dataclasses import replace

import pytest
import torch

from adapters.masks import CrossMask
from tests.conftest import random_model
from tests.gpu_device import DEVICE, take_cpu_for_gpu
from vlm import preset
from vlm.gpu import functions, graph
from vlm.kv_cache import empty_cache
from vlm.quantization import quantize_model

pytest.importorskip("triton")

SEES_ALL = CrossMask(None, None)
NUM_STEPS = 4


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def on_gpu(monkeypatch):
    take_cpu_for_gpu(monkeypatch)
    monkeypatch.setattr(graph, "_STEPS_BEFORE", 1)


@pytest.fixture
def recorded(monkeypatch, on_gpu) -> list[bool]:
    """Whether kernels did it, of each step that was recorded in turn."""
    by_kernels, ready = [], []

    def noted(call):
        ready.clear()
        found = record(call)
        by_kernels.append(bool(ready))
        return found

    def noted_ready(*arguments):
        layers = ready_layers(*arguments)
        ready.extend(layers or [])
        return layers

    from vlm import decoder

    record, ready_layers = graph.record, decoder.ready_layers
    monkeypatch.setattr(graph, "record", noted)
    monkeypatch.setattr(decoder, "ready_layers", noted_ready)
    return by_kernels


def _model(precision: str | None = None):
    """Return a decoder of 4 layers in float32, the second and the last of which look at pictures, their gates open."""
    config = preset("11b-vision")
    text = replace(config.decoder, num_layers=2, width=64, num_heads=4, num_kv_heads=2, mlp_dim=96, vocab_size=64)
    config = replace(
        config, decoder=text, adapter=replace(config.adapter, cross_layers=(1, 3)), vision=preset("tiny").vision
    )
    model = random_model(config).to(DEVICE)
    if precision:
        quantize_model(model, precision)
    return model


def _replies(model, *, rows=1, cache_dtype=torch.float32, image=True, mask=SEES_ALL, seed=0, each=lambda step: None):
    """Return the hidden states [steps, rows, d] of tokens that are decoded after prompts of different lengths."""
    torch.manual_seed(seed)
    config = model.config.decoder
    cache = empty_cache(config, rows, 24, dtype=cache_dtype, device=torch.device(DEVICE))
    image = model.decoder.image_kv(torch.randn(rows, 37, config.width).to(DEVICE)) if image else None
    mask = mask if image else None
    ids = torch.randint(60, (rows, 9)).to(DEVICE)
    num_new = torch.tensor([9, 4, 7][:rows], device=DEVICE) if rows > 1 else None
    _, cache = model.decoder(ids, cache, image, mask, num_new)
    found = []
    for step in range(NUM_STEPS):
        each(step)
        hidden, cache = model.decoder(torch.randint(60, (rows, 1)).to(DEVICE), cache, image, mask)
        found.append(hidden[:, 0])
    return torch.stack(found)


def _is_close(found, plain) -> bool:
    return bool((found - plain).norm() <= 1e-5 * plain.norm())


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("precision", [None, "int8", "int4"])
def test_a_row_goes_through_kernels(precision, cache_dtype, image, monkeypatch, request):
    settings = {"cache_dtype": cache_dtype, "image": image}
    # The interpreter cuts what it stores in bfloat16 off.
    monkeypatch.setattr("vlm.kv_cache.SCALE_DTYPE", torch.float16)
    plain = _replies(_model(precision), **settings)
    recorded = request.getfixturevalue("recorded")
    found = _replies(_model(precision), **settings)
    assert recorded == [True]
    # Two orders of a sum may round to two neighbours among the numbers of 8 bits.
    assert _is_close(found, plain) or (cache_dtype == torch.int8 and (found - plain).abs().max() < 0.02)
    assert (found[0] - found[-1]).abs().max() > 0.1


SEEN = torch.arange(37).view(1, 1, 1, 37) < torch.tensor([30, 0, 12]).view(3, 1, 1, 1)
HIDES = CrossMask(SEEN.to(DEVICE), SEEN.any(-1)[:, 0].unsqueeze(-1).to(DEVICE))


@pytest.mark.parametrize("mask", [SEES_ALL, HIDES], ids=["all", "some"])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.int8])
def test_several_rows_go_through_their_layers(cache_dtype, mask, request):
    settings = {"rows": 3, "cache_dtype": cache_dtype, "mask": mask}
    plain = _replies(_model(), **settings)
    recorded = request.getfixturevalue("recorded")
    found = _replies(_model(), **settings)
    assert recorded == [False]
    assert _is_close(found, plain) or (cache_dtype == torch.int8 and (found - plain).abs().max() < 0.02)


def test_what_was_recorded_serves_the_next_reply_in_the_same_memory_alone(recorded, monkeypatch):
    model = _model()
    memory = empty_cache(model.config.decoder, 1, 24, dtype=torch.float32, device=torch.device(DEVICE))
    pictures = model.decoder.image_kv(torch.randn(1, 37, 64).to(DEVICE))
    monkeypatch.setattr(type(model.decoder), "image_kv", lambda decoder, tokens: pictures)
    monkeypatch.setattr("tests.test_gpu_step.empty_cache", lambda *_, **__: memory)
    _replies(model)
    _replies(model, seed=1)
    assert len(recorded) == 1
    pictures = type(pictures)(*(part.clone() for part in pictures))
    _replies(model, seed=1)
    assert len(recorded) == 2


def _other_memory(model):
    for weight in model.decoder.layers[2].mlp.down_proj.parameters():
        weight.data = -weight.data


def _other_numbers(model):
    model.decoder.layers[1].attention_gate.fill_(0.1)


def _hook(model):
    model.decoder.layers[0].mlp.register_forward_hook(lambda part, given, out: 2 * out)


@pytest.mark.parametrize("change", [_other_memory, _other_numbers, _hook])
def test_a_change_of_the_weights_is_noticed_between_two_tokens(change, request):
    plain_model = _model()
    plain = _replies(plain_model, each=lambda step: change(plain_model) if step == 3 else None)
    request.getfixturevalue("on_gpu")
    model = _model()
    assert _is_close(_replies(model, each=lambda step: change(model) if step == 3 else None), plain)


def test_a_change_between_two_replies_is_noticed_before_anything_is_replayed(recorded, monkeypatch):
    model = _model()
    memory = empty_cache(model.config.decoder, 1, 24, dtype=torch.float32, device=torch.device(DEVICE))
    monkeypatch.setattr("tests.test_gpu_step.empty_cache", lambda *_, **__: memory)
    _replies(model, image=False)
    _other_memory(model)
    replayed = graph.Recorded.run
    monkeypatch.setattr(graph.Recorded, "run", lambda *given: pytest.fail("replayed"))
    monkeypatch.setattr("tests.test_gpu_step.NUM_STEPS", 1)
    _replies(model, image=False)
    monkeypatch.setattr(graph.Recorded, "run", replayed)


def test_a_full_cache_is_not_written_past_its_end(on_gpu):
    model = _model()
    cache = empty_cache(model.config.decoder, 1, 4, dtype=torch.float32, device=torch.device(DEVICE))
    _, cache = model.decoder(torch.tensor([[1, 2, 3, 4]], device=DEVICE), cache)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            model.decoder(torch.tensor([[5]], device=DEVICE), cache)


def test_a_copy_and_another_process_begin_anew(recorded):
    model = _model()
    found = _replies(model)
    for other in (copy.deepcopy(model.decoder), pickle.loads(pickle.dumps(model.decoder))):
        assert model.decoder._graphs._found
        assert not other._graphs._found
        model.decoder = other
        assert _is_close(_replies(model), found)
    assert len(recorded) == 3


def test_a_recorded_step_that_is_wrong_is_not_used(recorded, monkeypatch, caplog):
    plain = _replies(_model())
    recorded.clear()
    real = functions.product
    monkeypatch.setattr("vlm.gpu.step.product", lambda *given, **how: 1.1 * real(*given, **how))
    with caplog.at_level(logging.WARNING):
        assert _is_close(_replies(_model()), plain)
    assert recorded == [True]
    assert "differs from torch's" in caplog.text


def test_layers_that_others_look_on_at_are_not_recorded(recorded):
    model = _model()
    model.decoder.layers[0].mlp.register_forward_hook(lambda part, given, out: 2 * out)
    _replies(model)
    assert recorded == []


def test_a_step_that_cannot_be_recorded_is_done_as_usual(monkeypatch, on_gpu, caplog):
    def refuse(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = _replies(_model())
    monkeypatch.setattr(graph, "record", refuse)
    with caplog.at_level(logging.WARNING):
        assert _is_close(_replies(_model()), plain)
    assert caplog.text.count("cannot be recorded") == 1


def test_short_replies_record_nothing(recorded, monkeypatch):
    monkeypatch.setattr("tests.test_gpu_step.NUM_STEPS", graph._STEPS_BEFORE)
    _replies(_model())
    assert recorded == []


def test_the_oldest_is_let_go(monkeypatch, on_gpu):
    monkeypatch.setattr(graph, "_MOST_GRAPHS", 2)
    x, graphs, memory = (
        torch.ones(3, device=DEVICE),
        graph.StepGraphs(),
        [torch.zeros(3, device=DEVICE) for _ in range(4)],
    )
    for kept in memory:
        for _ in range(5):
            graphs.run(lambda x: 2 * x, lambda: x + x, [x], [kept], lambda: 1)
    assert len(graphs._found) == 2
