"""Layers whose weights stay on the CPU: the same numbers, whatever comes between, and never more than two at a time."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adapters import lora
from tests.checkpoint_models import assert_same
from tests.conversations import FOUR_TILES, SMALL, refusal, user
from tests.streamed_models import ENCODER, QUESTION, SHORT, assert_equal, is_plain, model_of_six, streamed, streams
from vision_encoder.transformer import RowLayout
from vlm import VLM, GenerationConfig, Tokenizer
from vlm.checkpoint import layer_stream, load_model, save_model
from vlm.checkpoint.layer_stream import LayerStream
from vlm.checkpoint.offload import Offload, stream
from vlm.model import VisionLanguageModel


@pytest.fixture(scope="module")
def source() -> VLM:
    return VLM(model_of_six(), Tokenizer.bytes_only())


@pytest.fixture
def vlm(source) -> VLM:
    return streamed(copy.deepcopy(source.model))


def addresses(model: VisionLanguageModel) -> list[int]:
    return [weight.data_ptr() for weight in model.parameters()]


class LateCopies(layer_stream._Side):
    """Copies that come as late as they may: when they are waited for. Until then there is nothing to compute with."""

    def copy(self, buffer, weights) -> None:
        for view in buffer.views:
            view.fill_(torch.nan)
        buffer.ready = list(zip(buffer.views, weights, strict=True))

    def wait(self, buffer) -> None:
        for view, weight in buffer.ready or ():
            view.copy_(weight)
        buffer.ready = []


def test_it_is_the_same_model(vlm, source):
    before = addresses(vlm.model)
    assert_equal(vlm, source)
    assert addresses(vlm.model) == before


def test_what_is_copied_late_is_waited_for(source, monkeypatch):
    monkeypatch.setattr(layer_stream, "_Side", LateCopies)
    assert_equal(streamed(copy.deepcopy(source.model)), source)


@pytest.mark.parametrize("fault", ["no wait", "no copy", "another layer's"])
def test_a_planted_fault_is_seen(source, monkeypatch, fault):
    if fault == "another layer's":
        monkeypatch.setattr(layer_stream._Buffer, "is_of", lambda buffer, now: len(buffer.source or ()) == len(now))
    else:
        monkeypatch.setattr(layer_stream, "_Side", LateCopies)
        monkeypatch.setattr(LateCopies, fault.removeprefix("no "), lambda *_: None)
    vlm, messages = streamed(copy.deepcopy(source.model)), user("text")
    assert not torch.equal(vlm.logits(messages), source.logits(messages))


def test_two_layers_at_most_are_on_the_device_and_the_encoders_are_let_go(vlm):
    encoder, decoder = streams(vlm.model)
    seen = []
    for layer in vlm.model.encoder.local_layers:
        layer.register_forward_hook(lambda *_: seen.append(encoder.buffer_bytes))
    layer_bytes = [sum(-(-weight.nbytes // 512) * 512 for weight in vlm.model.get_submodule(name).parameters())
                   for name in ("encoder.global_layers.0", "decoder.layers.0")]  # fmt: skip
    for picture in (FOUR_TILES, SMALL):
        vlm.encode_image(picture)
        assert encoder.buffer_bytes == 0
        assert max(seen) == 2 * layer_bytes[0]
    vlm.chat(QUESTION, config=SHORT)
    assert decoder.buffer_bytes == 2 * layer_bytes[1]


def test_a_layer_is_copied_once_a_pass_and_ahead(vlm, monkeypatch):
    model, order = vlm.model, []
    names = {module: name for name, module in model.named_modules()}
    weights = {weight: names[layer] for layer in names if hasattr(layer, "mlp_norm") for weight in layer.parameters()}
    copy_to = layer_stream._Side.copy

    def copied(side, buffer, found) -> None:
        order.append(f"copy {weights[found[0]]}")
        copy_to(side, buffer, found)

    monkeypatch.setattr(layer_stream._Side, "copy", copied)
    for layer in (*model.encoder.local_layers, *model.encoder.global_layers, *model.decoder.layers):
        layer.mlp_norm.register_forward_hook(lambda *_, layer=layer: order.append(f"run {names[layer]}"))
    vlm.encode_image(FOUR_TILES)
    first, *others = ENCODER
    expected = [f"copy {first}", f"copy {others[0]}", f"run {first}"]
    for name, following in zip(others, [*others[1:], None], strict=True):
        expected += [f"copy {following}"] * bool(following) + [f"run {name}"]
    assert order == expected
    order.clear()
    vlm.chat(user("text"), config=GenerationConfig(max_new_tokens=3))
    first, *others = [names[layer] for layer in model.decoder.layers if is_plain(layer)][1:]
    one_pass = [f"run {first}"]
    for name, following in zip(others, [*others[1:], first], strict=True):
        one_pass += [f"copy {following}", f"run {name}"]
    whole = [line for line in order if "layers.0" not in line]
    # The prompt and two tokens; the first layer is there already when the second token comes.
    assert whole == [f"copy {first}", *[f"copy {others[0]}", *one_pass] * 3]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["encoder.local_layers.1", "encoder.global_layers.1", "decoder.layers.4"])
def test_after_an_error_all_is_right(vlm, source, error, place):
    before = addresses(vlm.model)

    def fail(*_) -> None:
        raise error("planted")

    hook = vlm.model.get_submodule(place).mlp_norm.register_forward_hook(fail)
    for _ in range(2):
        with pytest.raises(error, match="planted"):
            vlm.chat(QUESTION, config=SHORT)
        assert addresses(vlm.model) == before
        assert streams(vlm.model)[place.startswith("decoder")].buffer_bytes == 0
    hook.remove()
    assert_equal(vlm, source)


def test_an_interruption_while_weights_are_given_back_is_made_good(vlm, source, monkeypatch):
    def interrupt(_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LayerStream, "_give_back", interrupt)
        with pytest.raises(KeyboardInterrupt):
            vlm.logits(user("text"))
    for buffer in streams(vlm.model)[1]._buffers:
        buffer.memory.fill_(255)
    assert_equal(vlm, source)


def test_a_single_layer_takes_one_buffer(source):
    model = copy.deepcopy(source.model)
    stream(model, Offload([], ["decoder.layers.0"]), torch.device("cpu"))
    assert_equal(VLM(model, source.tokenizer), source)
    found = model.decoder.layers[0].forward.func.__self__
    assert found.buffer_bytes < 1.2 * sum(weight.nbytes for weight in model.decoder.layers[0].parameters())


@pytest.mark.parametrize("way", ["in place", "loaded", "replaced", "merged"])
def test_weights_that_change_between_tokens_are_the_new_ones(vlm, source, way):
    expected = VLM(copy.deepcopy(source.model), source.tokenizer)
    messages = user("text")
    # The first streamed layer is copied ahead for the next pass.
    vlm.chat(messages, config=SHORT)
    for model in (vlm.model, expected.model):
        layers = [layer for layer in model.decoder.layers if is_plain(layer)]
        torch.manual_seed(0)
        if way == "in place":
            with torch.no_grad():
                layers[1].mlp.up_proj.weight.mul_(2)
        elif way == "merged":
            for adapter in lora.add_adapter(model, lora.LoRAConfig(rank=2)).values():
                torch.nn.init.normal_(adapter.up)
            lora.merge(model)
        else:
            state = {name: 1.5 * weight for name, weight in layers[1].state_dict().items()}
            layers[1].load_state_dict(state, assign=way == "replaced")
    assert not torch.equal(expected.logits(messages), source.logits(messages))
    assert torch.equal(vlm.logits(messages), expected.logits(messages))
    assert vlm.chat(messages, config=SHORT).token_ids == expected.chat(messages, config=SHORT).token_ids


def test_adapters_add_up(vlm, source):
    expected = VLM(copy.deepcopy(source.model), source.tokenizer)
    for each in (vlm, expected):
        torch.manual_seed(0)
        for adapter in lora.add_adapter(each.model, lora.LoRAConfig(rank=2)).values():
            torch.nn.init.normal_(adapter.up)
    assert not torch.equal(expected.logits(QUESTION), source.logits(QUESTION))
    assert_equal(vlm, expected)


def test_a_copy_streams_its_own_weights(vlm, source):
    vlm.logits(QUESTION)
    copied = VLM(copy.deepcopy(vlm.model), source.tokenizer)
    assert not {*addresses(copied.model)} & {*addresses(vlm.model)}
    with torch.no_grad():
        for weight in vlm.model.parameters():
            weight.zero_()
    assert_equal(copied, source)
    assert streams(copied.model)[1].buffer_bytes > 0


def test_it_can_be_pickled(vlm, source):
    vlm.logits(QUESTION)
    written = pickle.dumps(vlm.model.decoder)
    assert len(written) < 1.5 * sum(weight.nbytes for weight in vlm.model.decoder.parameters())
    vlm.model.decoder = pickle.loads(written)
    assert streams(vlm.model)[1].buffer_bytes == 0
    assert_equal(vlm, source)
    assert streams(vlm.model)[1].buffer_bytes > 0


def test_a_layer_copied_alone_is_right(vlm, source):
    layer = copy.deepcopy(vlm.model.encoder.global_layers[0])
    gc.collect()
    x, layout = torch.randn(1, 6, 32), RowLayout(4, None)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(layer(x, layout), source.model.encoder.global_layers[0](x, layout))


def test_its_state_is_that_of_the_model_and_is_saved(vlm, source, tmp_path):
    vlm.logits(QUESTION)
    found, expected = vlm.model.state_dict(), source.model.state_dict()
    assert list(found) == list(expected)
    assert all(weight.device.type == "cpu" and torch.equal(weight, expected[name]) for name, weight in found.items())
    save_model(vlm.model, tmp_path)
    assert_same(load_model(tmp_path), source.model)


def test_it_is_gone_as_soon_as_the_model_is(source):
    vlm = streamed(copy.deepcopy(source.model))
    vlm.logits(QUESTION)
    held = [weakref.ref(part) for part in (*streams(vlm.model), *vlm.model.decoder.layers)]
    gc.disable()
    try:
        del vlm
        assert [part() for part in held] == [None] * len(held)
    finally:
        gc.enable()


def test_gradients_are_refused(vlm, source):
    ids = torch.arange(9)[None]
    error = refusal(vlm.model, ids)
    assert error.code == "invalid_request"
    assert "low_memory=False" in error.message
    with torch.no_grad():
        assert torch.equal(vlm.model(ids), source.model(ids))


def test_threads_take_turns(vlm, source):
    """The layers of one pass come between those of another."""
    ids = [torch.randint(512, (1, 12 + i)) for i in range(8)]

    @torch.inference_mode()
    def answers(model: VisionLanguageModel, place: int) -> list[torch.Tensor]:
        return [model(ids[place]) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: answers(vlm.model, place), range(8)))
    for place, each in enumerate(found):
        assert all(map(torch.equal, each, answers(source.model, place)))


def test_a_model_that_was_moved_computes_where_it_is(source):
    assert_equal(streamed(copy.deepcopy(source.model), "meta"), source)


def test_a_model_loaded_in_inference_mode_is_streamed_too(source):
    with torch.inference_mode():
        model = copy.deepcopy(source.model)
        for name, weight in source.model.named_parameters():
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(weight.clone()))
        vlm = streamed(model)
    assert_equal(vlm, source)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_the_same_model(source):
    resident = VLM(copy.deepcopy(source.model).cuda(), source.tokenizer)
    vlm = streamed(copy.deepcopy(source.model).cuda(), "cuda")
    layers = [*vlm.model.encoder.local_layers, *[layer for layer in vlm.model.decoder.layers if is_plain(layer)][1:]]
    for _ in range(3):
        assert_equal(vlm, resident)
        vlm.images.forget()
        assert all(weight.is_pinned() for layer in layers for weight in layer.parameters())
    assert_equal(VLM(copy.deepcopy(vlm.model), source.tokenizer), resident)
    copied = VLM(copy.deepcopy(vlm.model).cpu(), source.tokenizer)
    assert torch.equal(copied.logits(QUESTION), source.logits(QUESTION))
