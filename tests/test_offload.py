"""Which layers stay in the CPU's memory for a GPU: as few as have to, and the model is the same one."""

import logging
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint_models import text_config
from tests.conftest import random_model
from tests.conversations import FOUR_TILES, MIXED, refusal, user
from vision_encoder.encoder import VisionEncoder
from vlm import VLM, GenerationConfig, Tokenizer, preset
from vlm.checkpoint import empty_model, load_model, save_model
from vlm.checkpoint.memory import gpu_free_bytes, num_bytes
from vlm.checkpoint.offload import Counts, LayerSizes, choose, device_bytes, plan, reserve_bytes

SHORT = GenerationConfig(max_new_tokens=5)
BYTES = st.integers(0, 50)
SIZES = st.builds(LayerSizes, st.lists(BYTES, max_size=6), st.lists(BYTES, max_size=6), BYTES)


def every_choice(sizes: LayerSizes) -> list[Counts]:
    return [Counts(*counts) for counts in product(range(len(sizes.encoder) + 1), range(len(sizes.decoder) + 1))]


def streamed_bytes(sizes: LayerSizes, counts: Counts) -> int:
    return sum(sum(kind[len(kind) - count :]) for kind, count in zip(sizes[:2], counts, strict=True))


# The plan


@given(SIZES, st.integers(0, 400), st.integers(0, 100))
def test_a_plan_fits_or_nothing_does(sizes, free, reserve):
    least = min(device_bytes(sizes, counts) for counts in every_choice(sizes))
    if least > free:
        assert refusal(plan, sizes, free, reserve, None).code == "device_unavailable"
    else:
        needed = device_bytes(sizes, plan(sizes, free, reserve, None))
        assert needed + reserve <= free or needed == least


@given(SIZES, st.integers(0, 400), st.integers(0, 100))
def test_no_less_would_do_and_the_encoder_goes_first(sizes, free, reserve):
    fits = [counts for counts in every_choice(sizes) if device_bytes(sizes, counts) + reserve <= free]
    if not fits:
        return
    found = plan(sizes, free, reserve, None)
    assert not any(each.encoder < found.encoder for each in fits if each.decoder == found.decoder == 0)
    if found.decoder:
        assert all(each.decoder >= found.decoder for each in fits)


@given(SIZES, st.integers(0, 400), st.integers(0, 100))
def test_false_moves_nothing_and_true_the_whole_encoder(sizes, free, reserve):
    for low_memory, is_it in ((False, Counts(0, 0).__eq__), (True, lambda found: found.encoder == len(sizes.encoder))):
        choices = list(filter(is_it, every_choice(sizes)))
        least = min(device_bytes(sizes, counts) for counts in choices)
        if least > free:
            assert refusal(plan, sizes, free, reserve, low_memory).code == "device_unavailable"
        else:
            found = plan(sizes, free, reserve, low_memory)
            assert is_it(found)
            assert device_bytes(sizes, found) + reserve <= free or device_bytes(sizes, found) == least


def test_what_the_device_holds_is_what_stays_and_two_buffers_a_kind():
    sizes = LayerSizes([10, 10, 10, 12], [7, 8, 9], 100)
    assert device_bytes(sizes, Counts(0, 0)) == 166
    assert device_bytes(sizes, Counts(3, 0)) == 100 + 10 + 2 * 12 + 24
    assert device_bytes(sizes, Counts(4, 2)) == 100 + 2 * 12 + 7 + 2 * 9


@pytest.mark.parametrize("low_memory", [None, True, False])
def test_a_refusal_says_what_is_needed_and_what_helps(low_memory):
    error = refusal(plan, LayerSizes([10**9] * 4, [10**9] * 4, 10**10), 9 * 10**9, 0, low_memory)
    assert error.code == "device_unavailable"
    assert len(error.message) <= 300
    needed = "18.0" if low_memory is False else "14.0"
    assert f"{needed} GB" in error.message
    assert "9.0 GB are free" in error.message
    assert 'quantize="int8"' in error.message
    assert ("leave low_memory out" in error.message) == (low_memory is False)


# Sizes as they are published; 1e9 bytes that are free


@pytest.mark.parametrize(("free", "encoder", "decoder"), [(30, 0, 0), (24.5, 17, 0), (20, 40, 11), (8, 40, 32)])
def test_the_11b_on_common_cards(free, encoder, decoder):
    model = empty_model(preset("11b-vision"))
    found = choose(model, torch.bfloat16, int(free * 1e9), None)
    assert (len(found.encoder), len(found.decoder)) == (encoder, decoder)
    # A text of 8,192 positions, six pictures, and what is computed meanwhile.
    assert reserve_bytes(model.config, torch.bfloat16) == pytest.approx(3.7e9, rel=0.01)


# A model in a folder


@pytest.fixture(scope="module")
def source() -> VLM:
    config = preset("tiny")
    vision = replace(config.vision, num_local_layers=6, num_global_layers=4)
    return VLM(
        random_model(replace(config, vision=vision, decoder=replace(config.decoder, num_layers=8))),
        Tokenizer.bytes_only(),
    )


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("offload") / "model"
    source.save_pretrained(folder)
    return folder


@pytest.fixture
def free(monkeypatch):
    """A function that makes the CPU a GPU with so many bytes."""
    return lambda count: monkeypatch.setattr("vlm.checkpoint.loading.gpu_free_bytes", lambda _: count)


def streamed(model) -> tuple[int, int]:
    """Return how many layers of the encoder and of the decoder are streamed."""
    encoder = [] if model.encoder is None else [*model.encoder.local_layers, *model.encoder.global_layers]
    return tuple(sum("forward" in vars(layer) for layer in layers) for layers in (encoder, model.decoder.layers))


def total(model) -> int:
    return num_bytes(model.state_dict(), torch.float32)


def test_it_is_chosen_by_what_is_free(folder, source, free, caplog):
    room = total(source.model) + reserve_bytes(source.model.config, torch.float32)
    encoder = sum(weight.nbytes for name, weight in source.model.named_parameters() if "l_layers" in name)
    counts = []
    for count in (room, room - 1, room - encoder // 2, room - encoder, room - int(1.2 * encoder), total(source.model)):
        free(count)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            vlm = VLM.from_pretrained(folder, device="cpu")
        counts.append(streamed(vlm.model))
        said = [record for record in caplog.records if "stay in the CPU's memory" in record.message]
        assert len(said) == any(counts[-1])
        assert vlm.model.release is None
        for messages in MIXED[:3]:
            assert torch.equal(vlm.logits(messages), source.logits(messages))
        assert vlm.chat(MIXED[1], config=SHORT).token_ids == source.chat(MIXED[1], config=SHORT).token_ids
    assert counts[0] == (0, 0)
    assert 0 < counts[1][0] < 10
    assert 0 < counts[2][0] < 10
    assert all(encoder == 10 for encoder, _ in counts[3:])
    assert counts == sorted(counts)
    assert counts[-1] == (10, 8)


def test_true_and_false(folder, source, free):
    free(10**12)
    assert streamed(load_model(folder, low_memory=True)) == (10, 0)
    assert streamed(load_model(folder, low_memory=False)) == streamed(load_model(folder)) == (0, 0)
    free(total(source.model) - 1)
    assert "leave low_memory out" in refusal(load_model, folder, low_memory=False).message
    assert streamed(load_model(folder, low_memory=None)) == (10, 8)
    free(total(source.model) // 10)
    for low_memory in (None, True, False):
        assert refusal(load_model, folder, low_memory=low_memory).code == "device_unavailable"


def test_what_is_streamed_does_not_go_through_the_device_and_fits_the_cpus_memory(folder, source, free, monkeypatch):
    free(total(source.model))
    # A device whose tensors hold nothing has no tables to look at.
    monkeypatch.setattr(VisionEncoder, "inspect_tables", lambda _: None)
    model = load_model(folder, low_memory=None, device="meta")
    of_layers = ("encoder.local_layers.", "encoder.global_layers.", "decoder.layers.")
    seeing = [f"decoder.layers.{place}." for place in source.model.config.adapter.cross_layers]
    for name, weight in model.named_parameters():
        is_streamed = name.startswith(of_layers) and not name.startswith(tuple(seeing))
        assert weight.device.type == ("cpu" if is_streamed else "meta"), name
    assert model.projector.weight.device == model.decoder.embedding.weight.device == torch.device("meta")
    monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda: 1000)
    assert refusal(load_model, folder, low_memory=None).code == "device_unavailable"
    free(10**12)
    load_model(folder, low_memory=None)


def test_of_a_quantised_model_the_encoder_alone(folder, source, free):
    free(10**12)
    expected = VLM.from_pretrained(folder, quantize="int8")
    free(total(expected.model) // 3 * 2)
    found = VLM.from_pretrained(folder, quantize="int8")
    assert streamed(found.model) == (10, 0)
    messages = user(FOUR_TILES, "what?")
    assert torch.equal(found.logits(messages), expected.logits(messages))
    free(10**5)
    assert refusal(VLM.from_pretrained, folder, quantize="int8").code == "device_unavailable"


def test_a_text_only_model(tmp_path, free, caplog):
    config = text_config()
    expected = random_model(replace(config, decoder=replace(config.decoder, num_layers=5)))
    save_model(expected, tmp_path)
    free(total(expected))
    model = load_model(tmp_path, low_memory=None)
    assert streamed(model) == (0, 5)
    with torch.no_grad():
        assert torch.equal(model(torch.arange(9)[None]), expected(torch.arange(9)[None]))
    free(10**12)
    assert streamed(load_model(tmp_path, low_memory=True)) == (0, 0)
    assert "low_memory changes nothing here" in caplog.text


# What is free


@pytest.mark.parametrize(
    ("fraction", "reserved", "expected"), [(1.0, 0, 60), (1.0, 25, 80), (0.5, 25, 45), (0.5, 5, 45), (0.05, 5, 0)]
)
def test_what_torch_keeps_is_free_and_a_cap_is_kept(monkeypatch, fraction, reserved, expected):
    """Of 100 bytes 60 are free, and 5 of those that torch keeps are in use."""
    used = min(5, reserved)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: used)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: fraction)
    assert gpu_free_bytes(torch.device("cuda")) == expected
    assert gpu_free_bytes(torch.device("cpu")) is gpu_free_bytes(torch.device("mps")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_figure_is_real(folder, source):
    before = gpu_free_bytes(torch.device("cuda"))
    model = load_model(folder, device="cuda", low_memory=True)
    assert streamed(model) == (10, 0)
    assert before - gpu_free_bytes(torch.device("cuda")) >= sum(
        weight.nbytes for weight in model.parameters() if weight.device.type == "cuda"
    )
    vlm = VLM(model, Tokenizer.bytes_only())
    assert vlm.device.type == "cuda"
    torch.testing.assert_close(vlm.logits(MIXED[1]).cpu(), source.logits(MIXED[1]), rtol=1e-3, atol=1e-3)
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        assert refusal(load_model, folder, device="cuda", low_memory=None).code == "device_unavailable"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
