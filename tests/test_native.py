"""Our own C beside torch in float64: products, norm, attention of one position; and what serves without it."""

import copy
import ctypes
import logging
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from adapters.masks import CrossMask
from vlm import decoder, native, preset
from vlm.attention import attend
from vlm.bench.random_models import random_model
from vlm.kv_cache import empty_cache, quantize_vectors
from vlm.quantization import QuantizedLinear, QuantizedWeight, Scheme, dequantize, quantize
from vlm.quantization.cpu_product import NativeKernel
from vlm.rope import rotate, rotation

needs_native = pytest.mark.skipif(native.library() is None, reason="not run: gcc, or a processor with AVX-512 VNNI")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=[0, 1], ids=["one by one", "pairs"])
def by_pairs(request, monkeypatch):
    """Has bfloat16 multiplied as processors without AVX512-BF16 do it, and as those with it where this is one."""
    functions = native.library()
    if functions is not None:
        found = ctypes.c_int.in_dll(functions, "by_pairs")
        if request.param > found.value:
            pytest.skip("not run: a processor with AVX512-BF16")
        monkeypatch.setattr(found, "value", request.param)


def rounding(exact: torch.Tensor) -> float:
    """Return by how much one rounding to bfloat16 may be off."""
    return exact.abs().max().item() * torch.finfo(torch.bfloat16).eps


@needs_native
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("out", "cols"), [(16, 32), (48, 160), (33, 64), (16, 40), (48, 8224)])
def test_a_product_of_few_rows_is_rounded_once(rows, out, cols, by_pairs):
    layer = native.Linear(cols, out).bfloat16()
    x = torch.randn(rows, 1, cols).bfloat16()
    exact = x.double() @ layer.weight.double().T
    assert layer(x).shape == (rows, 1, out)
    assert (layer(x).double() - exact).abs().max() <= rounding(exact)


@needs_native
@pytest.mark.parametrize("cols", [160, 4096, 8224])
@pytest.mark.parametrize("scheme", [None, Scheme(bits=8), Scheme(bits=4, group_size=32)], ids=str)
def test_each_of_a_few_rows_is_rounded_as_it_is_alone(scheme, cols, by_pairs):
    """So a pass that checks several tokens gives what passes of one give."""
    layer = native.Linear(cols, 512).bfloat16()
    layer = layer if scheme is None else QuantizedLinear.of(quantize(layer.weight.detach(), scheme), scheme)
    x = torch.randn(native.MAX_ROWS, cols).bfloat16()
    for rows in range(2, native.MAX_ROWS + 1):
        assert torch.equal(layer(x[:rows]), torch.cat([layer(row[None]) for row in x[:rows]]))


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("causal", [False, True])
def test_each_of_a_few_positions_attends_as_it_does_alone(causal, dtype):
    """Where each sees the keys up to its own, those of the others too."""
    q, k, v = torch.randn(1, 8, 4, 64), *torch.randn(2, 1, 2, 50, 64)
    kept, scales = (k.bfloat16(), v.bfloat16()), None
    if dtype == torch.int8:
        kept, scales = zip(*map(quantize_vectors, (k, v)), strict=True)
    found = attend(q.bfloat16(), *kept, scales, causal=causal)
    for place in range(4):
        end = 47 + place if causal else 50
        own = scales and tuple(scale[:, :, :end] for scale in scales)
        alone = attend(q[:, :, place : place + 1].bfloat16(), *(part[:, :, :end] for part in kept), own)
        assert torch.equal(found[:, :, place : place + 1], alone)


@needs_native
@pytest.mark.parametrize("rows", [1, 40, 1000])
def test_a_norm_is_torchs(rows):
    ours, theirs = native.RMSNorm(96, eps=1e-5).bfloat16(), torch.nn.RMSNorm(96, eps=1e-5).bfloat16()
    ours.weight.data.normal_()
    theirs.weight = ours.weight
    x = 3 * torch.randn(1, rows, 96).bfloat16()
    assert (ours(x).double() - theirs(x).double()).abs().max() <= rounding(theirs(x).double())


@needs_native
@pytest.mark.parametrize(
    ("heads", "groups", "length", "width"),
    [(8, 2, 1, 32), (6, 2, 37, 64), (5, 1, 200, 128), (4, 2, 33, 48), (3, 1, 150, 80), (2, 2, 5, 16)],
)
def test_attention_of_one_position_is_exact(heads, groups, length, width, by_pairs):
    q = 3 * torch.randn(1, 1, heads, width).bfloat16().transpose(1, 2)
    # Views of a longer cache.
    k, v = (torch.randn(1, groups, length + 7, width).bfloat16()[:, :, :length] for _ in range(2))
    assert native.attend_one(q, k, v) is not None
    exact = functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), enable_gqa=True)
    assert (attend(q, k, v).double() - exact).abs().max() <= rounding(exact)


@needs_native
@pytest.mark.parametrize(
    "scheme", [Scheme(bits=8), Scheme(bits=8, group_size=32), Scheme(bits=4, group_size=32, symmetric=False)], ids=str
)
def test_quantised_products_keep_sixteen_bits_of_each_group_of_x(scheme):
    weight = quantize(torch.randn(64, 256).bfloat16(), scheme)
    if not scheme.symmetric:
        weight = weight._replace(zeros=torch.randint(-8, 8, weight.scales.shape, dtype=torch.int8))
    layer = QuantizedLinear.of(QuantizedWeight(*weight), scheme)
    assert isinstance(layer.kernel, NativeKernel)
    x = torch.randn(23, 256).bfloat16()  # two blocks of eight, one of four, one of three
    x[:, 3] *= 1000  # what is large in one group leaves the others as exact as they were
    exact = x.double() @ dequantize(weight, scheme, torch.float64).T
    assert (layer(x).double() - exact).abs().max() <= 1.01 * rounding(exact)
    small = x.clone()
    small[:, :128] = 0
    exact = small.double() @ dequantize(weight, scheme, torch.float64).T
    assert (layer(small).double() - exact).abs().max() <= 1.01 * rounding(exact)
    assert all(torch.equal(layer(x[row : row + 1])[0], layer(x)[row]) for row in range(len(x)))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@needs_native
@pytest.mark.parametrize("scheme", [Scheme(bits=8), Scheme(bits=4, group_size=32)], ids=str)
def test_small_numbers_beside_a_large_one_are_kept_to_its_last_bits(scheme):
    weight = torch.randn(64, 256).bfloat16()
    weight[:, 5::32] = 0  # so that the large ones do not count, and the others are all that is left of x
    weight = quantize(weight, scheme)
    x = ((torch.rand(3, 256) + 0.5) / 300).bfloat16()
    x[:, 5::32] = 1
    exact_weight = dequantize(weight, scheme, torch.float64)
    exact = x.double() @ exact_weight.T
    lost = exact_weight.abs().sum(-1) / 65024
    assert ((QuantizedLinear.of(weight, scheme)(x).double() - exact).abs() <= 1.01 * (lost + rounding(exact))).all()


def _layers(scheme: Scheme | None) -> list[torch.nn.Module]:
    """Return three layers of 32, 64 and 16 rows, quantised or in bfloat16."""
    plain = [native.Linear(128, out).bfloat16() for out in (32, 64, 16)]
    return plain if scheme is None else [QuantizedLinear.of(quantize(layer.weight, scheme), scheme) for layer in plain]


@needs_native
@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("scheme", [None, Scheme(bits=8), Scheme(bits=4, group_size=64)], ids=str)
def test_products_side_by_side_are_bit_for_bit_those_of_each_alone(scheme, rows):
    layers, x = _layers(scheme), torch.randn(rows, 1, 128).bfloat16()
    together = native.side_by_side(x, *layers)
    if scheme is None and rows > native.MAX_ROWS:
        assert together is None
        return
    assert torch.equal(together, torch.cat([layer(x) for layer in layers], -1))


@needs_native
def test_layers_that_are_not_alike_or_carry_an_adapter_are_run_alone():
    quantized, plain, x = _layers(Scheme(bits=8)), _layers(None), torch.randn(1, 128).bfloat16()
    assert native.side_by_side(x, quantized[0], plain[1]) is None
    assert native.side_by_side(x, quantized[0], _layers(Scheme(bits=4, group_size=32))[1]) is None
    for layers in (quantized, plain):
        assert native.side_by_side(x, *layers) is not None
        layers[1].register_forward_hook(lambda layer, inputs, output: output + 1)
        assert native.side_by_side(x, *layers) is None


@pytest.mark.parametrize("scheme", [None, Scheme(bits=8)], ids=str)
def test_rows_of_another_width_are_refused_and_not_read_past_their_end(scheme):
    for layer in _layers(scheme):
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 64).bfloat16())


@needs_native
@pytest.mark.parametrize("rows", [1, 9])
def test_a_gate_is_rounded_once(rows):
    gate, up = (
        QuantizedLinear.of(quantize(torch.randn(48, 64).bfloat16(), Scheme(bits=8)), Scheme(bits=8)) for _ in "ab"
    )
    # Gates from far below zero to far above, where silu is 0 and the gate itself.
    x = torch.randn(rows, 64).bfloat16() * torch.logspace(-2, 2, rows)[:, None].bfloat16()
    exact = functional.silu(gate(x).double()) * up(x).double()
    found = native.gated(x, gate, up).double()
    assert ((found - exact).abs() <= exact.abs() * torch.finfo(torch.bfloat16).eps / 2 + 1e-30).all()


@needs_native
@pytest.mark.parametrize("width", [32, 48])
@pytest.mark.parametrize(("batch", "length", "own"), [(1, 1, False), (2, 3, False), (2, 3, True)])
def test_heads_are_turned_in_place_and_values_left_alone(batch, length, own, width):
    config = replace(preset("tiny").decoder, width=4 * width)
    positions = torch.randint(500, (batch if own else 1, length))
    by, x = rotation(config, positions), torch.randn(batch, length, 5, config.head_dim).bfloat16()
    exact = rotate(x.double().transpose(1, 2), by).transpose(1, 2)
    turned = x.clone()
    assert native.rotate_in_place(turned, 3, *by)
    assert (turned[:, :, :3].double() - exact[:, :, :3]).abs().max() <= rounding(exact)
    assert torch.equal(turned[:, :, 3:], x[:, :, 3:])
    assert not native.rotate_in_place(x.float(), 3, *by)


@needs_native
@pytest.mark.parametrize("precision", ["bfloat16", "int4"])
def test_a_decoder_gives_with_joined_products_what_it_gives_without(precision, monkeypatch):
    config = preset("tiny")
    model = random_model(replace(config, decoder=replace(config.decoder, width=128, mlp_dim=160)), precision)
    image = model.decoder.image_kv(torch.randn(1, 6, 128).bfloat16())

    def logits() -> torch.Tensor:
        cache = empty_cache(model.config.decoder, 1, 9, dtype=torch.bfloat16, device=torch.device("cpu"))
        found = []
        for ids in (torch.arange(7)[None], torch.tensor([[9]]), torch.tensor([[11]])):
            output = model.decoder(ids, cache, image, CrossMask(None, None))
            cache = output.cache
            found.append(model.decoder.logits(output.hidden))
        return torch.cat(found, 1).double()

    joined = logits()
    for name, without in (("side_by_side", None), ("gated", None), ("rotate_in_place", False)):
        monkeypatch.setattr(decoder, name, lambda *_, without=without: without)
    apart = logits()
    assert (joined - apart).abs().max() <= 0.02 * apart.abs().max()


@needs_native
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none_in_its_row_alone(bad):
    x = torch.randn(3, 64).bfloat16()
    x[1, 40] = bad
    layers = [QuantizedLinear.of(quantize(torch.randn(32, 64).bfloat16(), s), s) for s in (Scheme(bits=8),)]
    for layer in (*layers, native.Linear(64, 32).bfloat16()):
        assert layer(x).isfinite().all(-1).tolist() == [True, False, True]
        assert not layer(x)[1].isfinite().any()


def test_gradients_are_torchs():
    layer, norm = native.Linear(64, 32).bfloat16(), native.RMSNorm(64, eps=1e-5).bfloat16()
    with torch.enable_grad():
        x = torch.randn(1, 64).bfloat16().requires_grad_()
        layer(norm(x)).sum().backward()
    assert all(tensor.grad is not None for tensor in (x, layer.weight, norm.weight))


@pytest.fixture
def no_gcc(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_without_gcc_torch_serves_and_that_is_said_once(no_gcc, caplog):
    scheme = Scheme(bits=4, group_size=32)
    weight, x = quantize(torch.randn(64, 64).bfloat16(), scheme), torch.randn(1, 64).bfloat16()
    with caplog.at_level(logging.WARNING, logger="vlm"):
        layer, plain = QuantizedLinear.of(weight, scheme), native.Linear(64, 64).bfloat16()
        layer(x), plain(x)
    (record,) = caplog.records
    assert "gcc could not build it" in record.message
    exact = x.double() @ dequantize(weight, scheme, torch.float64).T
    assert (layer(x).double() - exact).abs().max() <= 2 * rounding(exact)
    assert torch.equal(plain(x), functional.linear(x, plain.weight))
