"""Each kernel beside float64, and compiled for the GPUs that people have."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from tests.gpu_device import DEVICE, take_cpu_for_gpu
from vlm.attention import blockwise_attention
from vlm.gpu import functions, support
from vlm.kv_cache import dequantize_vectors, quantize_vectors
from vlm.quantization import QuantizedLinear, Scheme, dequantize, quantize
from vlm.quantization.gpu_product import TritonKernel

pytest.importorskip("triton")

SCHEMES = [
    None,
    Scheme(bits=8),
    Scheme(bits=4, group_size=32),
    Scheme(bits=4, group_size=128),
    Scheme(bits=4, group_size=64, symmetric=False),
]
# The interpreter's products of bfloat16 matrices are none.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
COLS = 1408


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    take_cpu_for_gpu(monkeypatch)
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape).to(DEVICE, dtype)


def weights(num_rows: int, scheme: Scheme | None, dtype: torch.dtype, cols: int = COLS):
    """Return random weights as the kernels take them, and what they are worth, in float64."""
    dense = randn(num_rows, cols, dtype=dtype) / cols**0.5
    if scheme is None:
        return functions.Weights(dense), dense.double()
    found = quantize(dense, scheme)
    if not scheme.symmetric:
        found = found._replace(zeros=torch.randint(-8, 8, found.scales.shape, dtype=torch.int8, device=DEVICE))
    return QuantizedLinear.of(found, scheme).gpu_weights(), dequantize(found, scheme, torch.float64)


def normed(x, norm):
    return functional.rms_norm(x.double(), x.shape, norm.double(), 1e-5)


def assert_close(found, exact, dtype):
    assert found.dtype == dtype
    # In float32 the order of the sum shows, else a few roundings.
    times = 32 if dtype == torch.float32 else 4
    assert (found.double() - exact).norm() <= times * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products_side_by_side_after_a_norm(scheme, dtype):
    x, norm = randn(COLS, dtype=dtype), randn(COLS, dtype=dtype)
    (one, exact_one), (two, exact_two), (three, exact_three) = (weights(rows, scheme, dtype) for rows in (40, 18, 3))
    for given, exact in (([one], [exact_one]), ([one, two, three], [exact_one, exact_two, exact_three])):
        found = functions.product(x, given, norm=(norm, 1e-5))
        assert_close(found, torch.cat(exact) @ normed(x, norm), dtype)
        assert_close(functions.product(x, given), torch.cat(exact) @ x.double(), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_gated_product_and_one_that_is_added(scheme, dtype):
    x, norm = randn(COLS, dtype=dtype), randn(COLS, dtype=dtype)
    (one, exact_one), (two, exact_two) = (weights(22, scheme, dtype) for _ in range(2))
    found = functions.product(x, [one, two], norm=(norm, 1e-5), gated=True)
    assert_close(found, functional.silu(exact_one @ normed(x, norm)) * (exact_two @ normed(x, norm)), dtype)
    residual, gate = randn(22, dtype=dtype), torch.tensor([-0.8], device=DEVICE, dtype=dtype)
    assert_close(functions.product(x, [one], residual=residual), residual.double() + exact_one @ x.double(), dtype)
    found = functions.product(x, [one], residual=residual, gate=gate)
    assert_close(found, residual.double() + gate.double().tanh() * (exact_one @ x.double()), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=str)
@pytest.mark.parametrize("num_rows", [1, 2, 21])
def test_a_layer_multiplies_rows_by_a_kernel(num_rows, scheme, dtype):
    found = quantize(randn(50, 384, dtype=dtype), scheme)
    if not scheme.symmetric:
        found = found._replace(zeros=torch.randint(-8, 8, found.scales.shape, dtype=torch.int8, device=DEVICE))
    layer, exact = QuantizedLinear.of(found, scheme), dequantize(found, scheme, torch.float64)
    assert isinstance(layer.kernel, TritonKernel)
    x = randn(num_rows, 384, dtype=dtype)
    assert_close(layer(x), x.double() @ exact.T, dtype)
    assert all(torch.equal(part, back) for part, back in zip(found, layer.stored(), strict=True) if part is not None)
    assert torch.equal(layer.weight, dequantize(found, scheme))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "groups", "length", "width"), [(8, 2, 700, 64), (4, 4, 5, 16), (24, 1, 300, 128)])
def test_attention_of_one_position(heads, groups, length, width, dtype):
    q = randn(2, heads, 1, width, dtype=dtype)
    # Views into a larger cache.
    k, v = (randn(3, 2, groups, length + 9, width, dtype=dtype)[1, :, :, :length] for _ in range(2))
    few = torch.zeros(2, 1, 1, length, dtype=torch.bool, device=DEVICE)
    few[0, ..., 3:5], few[1, ..., -1] = True, True
    for mask in (None, few, few[:1]):
        exact = blockwise_attention(q.double(), k.double(), v.double(), mask=mask)
        assert_close(functions.attend_one(q, k, v, mask=mask), exact, dtype)
    (codes_k, scales_k), (codes_v, scales_v) = quantize_vectors(k), quantize_vectors(v)
    exact = blockwise_attention(
        q.double(), *(dequantize_vectors(*part, torch.float64) for part in ((codes_k, scales_k), (codes_v, scales_v)))
    )
    assert_close(functions.attend_one(q, codes_k, codes_v, (scales_k, scales_v)), exact, dtype)


def test_a_row_that_may_see_nothing_attends_to_nothing():
    q, kv = randn(1, 2, 1, 16), randn(1, 2, 300, 16)
    mask = torch.zeros(1, 1, 1, 300, dtype=torch.bool, device=DEVICE)
    assert torch.equal(functions.attend_one(q, kv, kv, mask=mask), torch.zeros_like(q))


def test_many_keys_go_in_larger_parts():
    q, k, v = randn(1, 2, 1, 16), randn(1, 1, 40_000, 16), randn(1, 1, 40_000, 16)
    exact = blockwise_attention(q.double(), k.double(), v.double(), block_size=4096)
    assert_close(functions.attend_one(q, k, v), exact, torch.float32)


@pytest.mark.parametrize("change", ["two positions", "width", "mask", "dtype", "gradients"])
def test_what_the_kernel_does_not_take_is_left_to_torch(change):
    q, k = randn(1, 2, 1, 16), randn(1, 2, 9, 16)
    assert support.attends(q, k, k, None, None)
    mask = None
    if change == "two positions":
        q = randn(1, 2, 2, 16)
    if change == "width":
        q, k = randn(1, 2, 1, 24), randn(1, 2, 9, 24)
    if change == "mask":
        mask = torch.ones(1, 2, 1, 9, dtype=torch.bool, device=DEVICE)
    if change == "dtype":
        q = q.half()
    with torch.set_grad_enabled(change == "gradients"):
        assert not support.attends(q, k, k, None, mask)


@pytest.fixture
def asked_anew():
    support.is_usable.cache_clear()
    yield
    support.is_usable.cache_clear()


def test_without_triton_torch_serves_and_that_is_said_once(asked_anew, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vlm.gpu.kernels", None)
    monkeypatch.delattr("vlm.gpu.kernels", raising=False)
    q, k = randn(1, 2, 1, 16), randn(1, 2, 9, 16)
    assert not any(support.attends(q, k, k, None, None) for _ in range(2))
    assert caplog.text.count("install triton") == 1


@pytest.mark.parametrize("name", ["attend_one", "product", "product_of_rows"])
def test_kernels_that_are_wrong_here_are_not_used(name, asked_anew, monkeypatch, caplog):
    real = getattr(support, name)
    monkeypatch.setattr(support, name, lambda *given, **named: 1.1 * real(*given, **named))
    assert not support.is_usable()
    assert "other numbers than torch's" in caplog.text


def test_a_lack_of_memory_is_not_for_ever(asked_anew, monkeypatch):
    def lacks(device):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(support, "find_fault", lacks)
        with pytest.raises(torch.OutOfMemoryError):
            support.is_usable()
    assert support.is_usable()


@pytest.mark.slow
def test_kernels_compile_without_a_gpu(tmp_path):
    # In a process of its own: where kernels are interpreted nothing is compiled.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu_compiling"]
    done = subprocess.run(
        command, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout) == (0, "compiled\n"), done.stderr[-2000:]
