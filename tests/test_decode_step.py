"""A token through all layers in one call is, bit for bit, what the layers give one by one; and when it is not taken."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from adapters.lora import LoRAConfig, add_adapter
from adapters.masks import CrossMask
from vlm import decoder, native, preset
from vlm.bench.random_models import random_model
from vlm.kv_cache import empty_cache
from vlm.quantization import quantize_model

pytestmark = pytest.mark.skipif(native.library() is None, reason="not run: gcc, or a processor with AVX-512 VNNI")
SEES_ALL = CrossMask(None, None)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def calls(monkeypatch) -> list[bool]:
    """Whether each decode step was one call, in turn."""
    taken = []

    def noted(*arguments):
        step = real(*arguments)
        taken.append(step is not None)
        return step

    real = decoder.decode_step
    monkeypatch.setattr(decoder, "decode_step", noted)
    return taken


def _model(precision: str = "bfloat16", width: int = 256):
    """Return a decoder of 4 layers, the second of which looks at pictures, its gates open."""
    config = preset("11b-vision")
    text = replace(config.decoder, num_layers=3, width=width, num_heads=4, num_kv_heads=2, mlp_dim=384, vocab_size=512)
    config = replace(
        config, decoder=text, adapter=replace(config.adapter, cross_layers=(1,)), vision=preset("tiny").vision
    )
    model = random_model(config, precision)
    model.decoder.layers[1].attention_gate.fill_(0.7)
    model.decoder.layers[1].mlp_gate.fill_(-1.3)
    return model


def _replies(model, *, cache_dtype=torch.bfloat16, with_image=True, mask=SEES_ALL) -> list[torch.Tensor]:
    """Return the hidden states of five decoded tokens after a prompt of nine, and what is then in the cache."""
    torch.manual_seed(0)
    cache = empty_cache(model.config.decoder, 1, 16, dtype=cache_dtype, device=torch.device("cpu"))
    width = model.config.decoder.width
    image = model.decoder.image_kv(torch.randn(1, 37, width).bfloat16()) if with_image else None
    found = []
    for ids in (torch.arange(9)[None], *(torch.tensor([[17 * place]]) for place in range(5))):
        hidden, cache = model.decoder(ids, cache, image, mask if with_image else None)
        found.append(hidden)
    return [*found, *cache.parts]


def _one_by_one(model, monkeypatch, **settings) -> list[torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "decode_step", lambda *arguments: None)
        return _replies(model, **settings)


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_one_call_is_bit_for_bit_the_layers_one_by_one(precision, cache_dtype, with_image, calls, monkeypatch):
    model, settings = _model(precision), {"cache_dtype": cache_dtype, "with_image": with_image}
    found = _replies(model, **settings)
    assert calls == [True] * 5
    assert _same(found, _one_by_one(model, monkeypatch, **settings))
    hidden = torch.cat(found[1:6])
    assert hidden.isfinite().all()
    assert (hidden[0] - hidden[1]).abs().max() > 0.1


@pytest.mark.parametrize("width", [192, 320])
def test_heads_of_48_or_80_numbers_too(width, calls, monkeypatch):
    model = _model("int8", width)
    found = _replies(model)
    assert calls == [True] * 5
    assert _same(found, _one_by_one(model, monkeypatch))


def test_what_was_made_ready_is_used_again(calls):
    model = _model()
    _replies(model)
    first = model.decoder._step
    _replies(model)
    assert model.decoder._step is first


def _new_memory(model):
    for weight in model.decoder.layers[2].mlp.down_proj.parameters():
        weight.data = -weight.data


def _written_over(model):
    model.decoder.layers[1].mlp_gate.fill_(2.5)
    model.decoder.layers[0].attention.v_proj.weight.mul_(-1)


def _other_gate(model):
    model.decoder.layers[1].mlp_gate = torch.nn.Parameter(torch.tensor([2.5], dtype=torch.bfloat16))


def _other_scales(model):
    quantize_model(model, "int4")
    _replies(model)
    layer = model.decoder.layers[0].mlp.up_proj
    layer.scales = 2 * layer.scales


def _quantised(model):
    quantize_model(model, "int8")


def _exchanged(model):
    layer = native.Linear(256, 256).bfloat16()
    layer.weight.normal_()
    model.decoder.layers[3].attention.o_proj = layer


@pytest.mark.parametrize("change", [_new_memory, _written_over, _other_gate, _other_scales, _quantised, _exchanged])
def test_weights_that_change_between_tokens_are_noticed(change, calls, monkeypatch):
    model = _model()
    before = _replies(model)
    change(model)
    found = _replies(model)
    assert set(calls) == {True}
    assert not _same(before, found)
    assert _same(found, _one_by_one(model, monkeypatch))


def test_a_copy_of_a_model_has_a_step_of_its_own(calls, monkeypatch):
    model = _model()
    _replies(model)
    other = copy.deepcopy(model)
    _written_over(other)
    assert _same(_replies(other), _one_by_one(other, monkeypatch))
    assert _same(_replies(model), _one_by_one(model, monkeypatch))


@pytest.mark.parametrize(
    "place", ["layers.1", "layers.0.mlp", "layers.2.attention.q_proj", "layers.1.attention.q_norm"]
)
def test_layers_that_are_watched_are_run_one_by_one(place, calls):
    model, seen = _model(), []
    model.decoder.get_submodule(place).register_forward_hook(lambda *found: seen.append(1))
    _replies(model)
    assert calls == [False] * 5
    assert len(seen) >= 5


def test_a_layer_that_does_something_else_is_run_one_by_one(calls, monkeypatch):
    model = _model()
    monkeypatch.setattr(model.decoder.layers[0].mlp, "forward", lambda x: torch.zeros_like(x))
    _replies(model)
    assert calls == [False] * 5


def test_weights_that_are_computed_anew_are_not_read_where_they_were(calls, monkeypatch):
    model = _model()
    layer = model.decoder.layers[0].attention.q_proj
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Tanh())
    found = _replies(model)
    assert calls == [False] * 5
    assert _same(found, _one_by_one(model, monkeypatch))


def test_a_full_cache_is_refused_as_it_was():
    model = _model()
    cache = empty_cache(model.config.decoder, 1, 2, dtype=torch.bfloat16, device=torch.device("cpu"))
    for _ in range(2):
        cache = model.decoder(torch.tensor([[3]]), cache).cache
    kept = [part.clone() for part in cache.parts]
    with pytest.raises(RuntimeError, match="exceeds dimension size"):
        model.decoder(torch.tensor([[3]]), cache)
    assert _same(kept, list(cache.parts))


@pytest.mark.parametrize(
    "wrong", [lambda kv: kv[:, :, :1].expand(-1, -1, 3, -1, -1), lambda kv: kv[..., :32], lambda kv: kv[:0]]
)
def test_keys_of_another_shape_are_not_read_past_their_end(wrong):
    model = _model()
    image = model.decoder.image_kv(torch.randn(1, 37, 256).bfloat16())
    cache = empty_cache(model.config.decoder, 1, 2, dtype=torch.bfloat16, device=torch.device("cpu"))
    with pytest.raises((RuntimeError, IndexError)):
        model.decoder(torch.tensor([[3]]), cache, type(image)(*(wrong(part) for part in image)), SEES_ALL)


def test_a_cache_of_another_models_heads_is_refused_as_it_was():
    model = _model()
    wider = replace(model.config.decoder, num_kv_heads=4)
    cache = empty_cache(wider, 1, 4, dtype=torch.bfloat16, device=torch.device("cpu"))
    with pytest.raises(RuntimeError):
        model.decoder(torch.tensor([[3]]), cache)


def test_addresses_are_not_carried_to_another_process():
    model = _model()
    _replies(model)
    assert model.decoder._step is not None
    assert pickle.loads(pickle.dumps(model.decoder))._step is None
    assert copy.deepcopy(model.decoder)._step is None


def test_adapters_are_not_left_out(calls):
    model = _model()
    before = _replies(model)
    add_adapter(model.decoder, LoRAConfig(targets=("o_proj",)))
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            parameter.normal_()
    assert not _same(before, _replies(model))
    assert calls == [True] * 5 + [False] * 5


def test_what_sees_only_some_keys_is_run_one_by_one(calls):
    keys = torch.arange(37)[None, None, None] < 20
    _replies(_model(), mask=CrossMask(keys, None))
    assert calls == []


def test_gradients_are_had_where_they_are_wanted(calls):
    model = _model()
    cache = empty_cache(model.config.decoder, 1, 4, dtype=torch.bfloat16, device=torch.device("cpu"))
    with torch.enable_grad():
        weight = model.decoder.layers[0].mlp.down_proj.weight.requires_grad_()
        model.decoder(torch.tensor([[3]]), cache).hidden.float().sum().backward()
    assert weight.grad.abs().max() > 0
    assert calls == [False]


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_what_is_no_number_stays_none_and_where_it_was(part, cache_dtype, monkeypatch):
    model = _model()
    getattr(model.decoder.layers[0].attention, part).weight[:64] = torch.nan
    found = _replies(model, cache_dtype=cache_dtype, with_image=False)
    apart = _one_by_one(model, monkeypatch, cache_dtype=cache_dtype, with_image=False)
    assert all(hidden.isnan().any() for hidden in found[1:6])
    assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(found, apart, strict=True))
