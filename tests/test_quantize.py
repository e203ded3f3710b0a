"""Weights in 8 and 4 bits: how far they move, torch's kernels beside plain arithmetic, whole models."""

import copy
import logging

import pytest
import torch
from torch.nn import functional

from examples.run import EXAMPLES
from tests.conftest import random_model
from tests.conversations import MIXED, SMALL, refusal, user
from vlm import VLM, GenerationConfig, Tokenizer, preset
from vlm.checkpoint import empty_model
from vlm.model_sizes import ModelSizes
from vlm.quantization import (
    QuantizedLinear,
    QuantizedWeight,
    Scheme,
    dequantize,
    plan,
    quantize,
    quantize_model,
    quantized_config,
    quantized_layers,
)

INT8 = Scheme(bits=8)
SCHEMES = [INT8, *(Scheme(bits=4, group_size=size) for size in (32, 64, 128))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def weights(rows: int, cols: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Return random weights, some rows of them large, some zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator) * (0.02 + 0.1 * torch.rand(rows, 1, generator=generator))
    weight[rows // 2] = 0
    weight[0, 0] = 3
    return weight.to(dtype)


def steps(weight: QuantizedWeight, cols: int) -> torch.Tensor:
    """Return the distance of two neighbouring values for each weight."""
    return weight.scales.double().repeat_interleave(cols // weight.scales.shape[1], 1)


# Laws


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_no_weight_moves_by_more_than_half_a_step(scheme, dtype):
    weight = weights(24, 256, dtype)
    quantized = quantize(weight, scheme)
    moved = (dequantize(quantized, scheme, torch.float64) - weight.double()).abs()
    assert (moved <= steps(quantized, 256) * (0.5 + 2e-5)).all()
    assert (dequantize(quantized, scheme)[12] == 0).all()
    # Both ends of the range are used: a step is no larger than the largest weight of a group needs.
    largest = weight.double().unflatten(1, (quantized.scales.shape[1], -1)).abs().amax(-1)
    needed = largest / (2 ** (scheme.bits - 1) - 0.5)
    assert (quantized.scales.double() <= needed * (1 + 2 * torch.finfo(dtype).eps)).logical_or(largest == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_expanding_is_the_formula(scheme):
    limit = 2 ** (scheme.bits - 1)
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(-limit, limit, (16, 256), generator=generator)
    scales = torch.rand(16, scheme.num_groups(256), generator=generator)
    zeros = torch.randint(-limit, limit, scales.shape, generator=generator, dtype=torch.int8)
    codes = numbers.to(torch.int8) if scheme.bits == 8 else halves(numbers)
    size = 256 // scales.shape[1]
    expected = [
        [(numbers[row, col] - zeros[row, col // size]).float() * scales[row, col // size] for col in range(256)]
        for row in range(16)
    ]
    assert torch.equal(dequantize(QuantizedWeight(codes, scales, zeros), scheme), torch.tensor(expected))


def halves(numbers: torch.Tensor) -> torch.Tensor:
    """Return two numbers a byte: a slow twin of the packing."""
    rows = [[(row[i] + 8) + 16 * (row[i + 1] + 8) for i in range(0, len(row), 2)] for row in numbers.tolist()]
    return torch.tensor(rows, dtype=torch.uint8)


def test_smaller_groups_and_more_bits_are_nearer():
    weight = weights(32, 512)
    errors = [(dequantize(quantize(weight, s), s) - weight).square().mean().item() for s in SCHEMES]
    eight, by_32, by_64, by_128 = errors
    assert eight < by_32 / 10
    assert by_32 < by_64 < by_128


def test_large_layers_are_quantised_in_parts_that_do_not_show(monkeypatch):
    whole = quantize(weights(40, 64), SCHEMES[1])
    monkeypatch.setattr("vlm.quantization.weight.CHUNK", 7 * 64)
    parts = quantize(weights(40, 64), SCHEMES[1])
    assert all(torch.equal(a, b) for a, b in zip(whole[:2], parts[:2], strict=True))


# Kernels


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_kernel_computes_what_expanded_weights_do(scheme, dtype, device):
    generator = torch.Generator().manual_seed(2)
    kernels = 0
    for rows, cols in ((192, 384), (80, 128), (16, 256), (33, 128), (7, 50)):
        if cols % (scheme.group_size or 1):
            continue
        quantized = quantize(weights(rows, cols, dtype), scheme)
        layer = QuantizedLinear.of(QuantizedWeight(*(part.to(device) for part in quantized[:2])), scheme)
        kernels += layer.kernel is not None
        for count in (1, 3, 5, 200):
            x = torch.randn(count, cols, generator=generator).to(device, dtype)
            expanded = dequantize(quantized, scheme).to(device)
            exact = x.double() @ expanded.double().T
            # In float32 the order of the sum shows.
            rounding = torch.finfo(dtype).eps * exact.abs().max().item() * (16 if dtype == torch.float32 else 2)
            found, plain = layer(x), functional.linear(x, expanded)
            assert found.dtype == dtype
            # A kernel rounds less than weights that were expanded to 16 bits did.
            assert (found.double() - exact).abs().max() <= rounding + (plain.double() - exact).abs().max()
            assert torch.equal(layer.expanded_product(x), plain)
    assert kernels or device == "cuda"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme(bits=4, group_size=32, symmetric=False)], ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(64, 128), (208, 128), (48, 256)])
def test_what_a_kernel_arranged_can_be_taken_apart_again(monkeypatch, rows, cols, scheme, dtype):
    monkeypatch.setattr("vlm.quantization.torch_product.CHUNK", 64 * cols)
    quantized = quantize(weights(rows, cols, dtype), scheme)
    if not scheme.symmetric:
        zeros = torch.randint(-8, 8, quantized.scales.shape, dtype=torch.int8)
        quantized = quantized._replace(zeros=zeros)
    layer = QuantizedLinear.of(quantized, scheme)
    assert layer.kernel is not None
    stored = layer.stored()
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(stored, quantized, strict=True))
    for start in range(0, rows, 64):
        part = layer.stored(slice(start, min(start + 64, rows)))
        assert torch.equal(part.codes, quantized.codes[start : start + 64])
    assert torch.equal(layer.weight, dequantize(quantized, scheme))
    x = torch.randn(1, cols).to(dtype)
    assert torch.allclose(layer(x), functional.linear(x, layer.weight), atol=0.05, rtol=0.05)


def test_a_layer_can_change_its_dtype_and_be_copied():
    layer = QuantizedLinear.of(quantize(weights(64, 128), SCHEMES[1]), SCHEMES[1])
    x = torch.randn(1, 128)
    twin = copy.deepcopy(layer).to(torch.bfloat16)
    assert torch.equal(twin.stored().codes, layer.stored().codes)
    assert twin(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(twin(x.bfloat16()).float(), layer(x), atol=0.2)


def test_layers_without_a_kernel_are_told_of_once(caplog):
    model = random_model(preset("tiny"))
    with caplog.at_level(logging.WARNING, logger="vlm"):
        quantize_model(model, "int8")
        model(torch.arange(4)[None])
    (record,) = caplog.records
    assert "5 of 36 quantised layers" in record.message
    assert "48 columns" in record.message


# Models


def test_all_of_the_decoders_matrices_are_quantised_and_nothing_else():
    model = random_model(preset("tiny"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantize_model(model, "int4")
    layers = quantized_layers(model)
    linear = {name.removesuffix(".weight") for name in before if name.endswith("_proj.weight") and "decoder" in name}
    assert set(layers) == linear | {"decoder.head"}
    assert "decoder.layers.1.attention.k_proj" in layers, "the keys of images too"
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in before}
    assert set(before) - set(kept) == {f"{name}.weight" for name in layers}
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())


@pytest.mark.parametrize(
    ("name", "group_size", "counts"),
    [
        ("default", 128, {"int4 in groups of 64": 54, "int4 in groups of 128": 9, "int8 a scale a row": 1}),
        ("default", 32, {"int4 in groups of 32": 63, "int8 a scale a row": 1}),
        ("tiny", 128, {"int4 in groups of 32": 30, "int8 a scale a row": 6}),
        ("11b-vision", 128, {"int4 in groups of 128": 280, "int8 a scale a row": 1}),
        ("1b", 64, {"int4 in groups of 64": 112, "int8 a scale a row": 1}),
    ],
)
def test_the_rule_for_rows_that_groups_do_not_divide(name, group_size, counts):
    model = empty_model(quantized_config(preset(name)))
    schemes = [str(scheme) for scheme in plan(model, "int4", group_size).values()]
    assert {scheme: schemes.count(scheme) for scheme in schemes} == counts


def test_a_head_of_its_own_is_counted():
    tied, own = (ModelSizes.of(config) for config in (preset("1b"), quantized_config(preset("1b"))))
    decoder = tied.config.decoder
    assert own.num_parameters - tied.num_parameters == decoder.vocab_size * decoder.width
    for precision in ("int8", "int4"):
        assert tied.weight_bytes(precision) == own.weight_bytes(precision)
        # The embedding need not be in memory once it is no head.
        assert tied.disk_bytes(precision) == own.disk_bytes(precision) == 2 * decoder.vocab_size * decoder.width
    assert tied.disk_bytes("bfloat16") == 0


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_logits_are_those_of_the_model_with_expanded_weights(precision, dtype):
    quantized = random_model(preset("tiny")).to(dtype)
    quantize_model(quantized, precision)
    plain = random_model(preset("tiny")).to(dtype)
    for name, layer in quantized_layers(quantized).items():
        plain.get_submodule(name).weight.data = layer.weight
    exact = copy.deepcopy(plain).float()
    theirs, ours, truth = (VLM(model, Tokenizer.bytes_only()) for model in (plain, quantized, exact))
    for messages in MIXED[:3]:
        found, expected, true = (vlm.logits(messages) for vlm in (ours, theirs, truth))
        largest = expected.abs().max()
        if dtype == torch.float32:
            assert (found - expected).abs().max() <= 1e-3 * largest
        else:
            # In 16 bits both round; neither is nearer to what is exact.
            assert (found - true).abs().max() <= 1.5 * (expected - true).abs().max() + 1e-3 * largest
    for layer in quantized_layers(quantized).values():
        (layer.codes, layer.scales, layer.zeros), layer.kernel = layer.stored(), None
    ours = VLM(quantized, Tokenizer.bytes_only())  # whose pictures were not read with kernels
    for messages in MIXED[:3]:
        assert (ours.logits(messages) - theirs.logits(messages)).abs().max() <= 1e-3 * largest


def test_the_shipped_model_answers_in_8_and_in_4_bits():
    picture = EXAMPLES / "tractor_sales.png"
    config = GenerationConfig(max_new_tokens=8)
    plain = VLM.from_pretrained(device="cpu")
    for precision in ("int8", "int4"):
        model = VLM.from_pretrained(quantize=precision, device="cpu")
        assert quantized_layers(model.model)
        assert model.info.num_bytes < plain.info.num_bytes
        reply = model.answer(picture, "How many series are there?", config=config)
        assert reply.finish_reason in ("stop", "length")
        assert reply.token_ids
        distance = (model.logits(user(picture, "?")) - plain.logits(user(picture, "?"))).abs().max()
        assert 0 < distance < 0.5 * plain.logits(user(picture, "?")).abs().max()


@pytest.mark.parametrize("precision", ["fp8", "", "INT8", 8, True, 4.0, ["int8"]], ids=str)
def test_a_precision_that_is_not_offered_is_refused(precision):
    error = refusal(VLM.from_pretrained, quantize=precision)
    assert error.code == "invalid_request"
    assert "give None, 'int8' or 'int4'" in error.message


def test_a_group_size_that_is_not_offered_is_refused():
    error = refusal(quantize_model, random_model(preset("tiny")), "int4", 48)
    assert error.code == "invalid_request"
    assert "group_size is 48; give one of 128, 64, 32" in error.message


def test_the_same_questions_in_a_batch_are_answered_as_alone():
    model = random_model(preset("tiny"))
    quantize_model(model, "int4")
    vlm = VLM(model, Tokenizer.bytes_only())
    conversations = [user("one"), user(SMALL, "two"), user("a longer third")]
    together = vlm.logits_many(conversations)
    for alone, row in zip(map(vlm.logits, conversations), together, strict=True):
        assert torch.allclose(alone, row, atol=1e-4)
