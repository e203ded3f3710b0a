"""Our own C beside torch in float64: products, norm, attention of one position; and what serves without it."""

import copy
import logging

import pytest
import torch
from torch.nn import functional

from vlm import native
from vlm.attention import attend
from vlm.quantization import QuantizedLinear, QuantizedWeight, Scheme, dequantize, quantize
from vlm.quantization.product import OwnKernel

needs_native = pytest.mark.skipif(native.library() is None, reason="not run: gcc, or a processor with AVX-512 VNNI")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def rounding(exact: torch.Tensor) -> float:
    """Return by how much one rounding to bfloat16 may be off."""
    return exact.abs().max().item() * torch.finfo(torch.bfloat16).eps


@needs_native
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("out", "cols"), [(16, 32), (48, 160), (33, 64), (16, 40)])
def test_a_product_of_few_rows_is_rounded_once(rows, out, cols):
    layer = native.Linear(cols, out).bfloat16()
    x = torch.randn(rows, 1, cols).bfloat16()
    exact = x.double() @ layer.weight.double().T
    assert layer(x).shape == (rows, 1, out)
    assert (layer(x).double() - exact).abs().max() <= rounding(exact)


@needs_native
def test_a_norm_is_torchs():
    ours, theirs = native.RMSNorm(96, eps=1e-5).bfloat16(), torch.nn.RMSNorm(96, eps=1e-5).bfloat16()
    ours.weight.data.normal_()
    theirs.weight = ours.weight
    x = 3 * torch.randn(1, 4, 96).bfloat16()
    assert (ours(x).double() - theirs(x).double()).abs().max() <= rounding(theirs(x).double())


@needs_native
@pytest.mark.parametrize(("heads", "groups", "length", "width"), [(8, 2, 1, 32), (6, 2, 37, 64), (5, 1, 200, 128)])
def test_attention_of_one_position_is_exact(heads, groups, length, width):
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
    assert isinstance(layer.kernel, OwnKernel)
    x = torch.randn(7, 256).bfloat16()
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
    assert "gcc did not build it" in record.message
    exact = x.double() @ dequantize(weight, scheme, torch.float64).T
    assert (layer(x).double() - exact).abs().max() <= 2 * rounding(exact)
    assert torch.equal(plain(x), functional.linear(x, plain.weight))
