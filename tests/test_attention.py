"""The production kernel, the blockwise twin and a naive softmax in float64 say the same, and none holds too much."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vision_encoder import attention as vision_attention
from vision_encoder.attention import attend_with_bias_as_columns, attention_dtype
from vision_encoder.transformer import RowLayout, VisionAttention
from vlm.attention import attend, attention_weights, blockwise_attention


class Heads(NamedTuple):
    """Random queries, keys and values."""

    q: Tensor
    k: Tensor
    v: Tensor


def draw(seed, b=2, g=2, r=2, s=5, length=7, e=8, dtype=torch.float32) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, g * r, s, e), (b, g, length, e), (b, g, length, e)]
    return Heads(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))


def naive_weights(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """[b, h, s, l] in float64, a head and a row at a time; zeros where a row may see nothing."""
    batch, num_heads, num_queries, width = q.shape
    out = torch.zeros(batch, num_heads, num_queries, k.shape[2], dtype=torch.float64)
    full = None if mask is None else mask.broadcast_to(out.shape)
    for row in range(batch):
        for head in range(num_heads):
            keys = k[row, head // (num_heads // k.shape[1])].double()
            for place in range(num_queries):
                seen = torch.ones(k.shape[2], dtype=torch.bool) if full is None else full[row, head, place].clone()
                if causal:
                    seen[place + 1 :] = False
                if seen.any():
                    scores = keys[seen] @ q[row, head, place].double() / math.sqrt(width)
                    out[row, head, place, seen] = (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()
    return out


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """[b, h, s, e] in float64."""
    return naive_weights(q, k, mask, causal) @ v.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)


@st.composite
def attention_cases(draw_value):
    b, g, r = (draw_value(st.integers(1, 3)) for _ in range(3))
    s, length = draw_value(st.integers(1, 6)), draw_value(st.integers(1, 9))
    causal = draw_value(st.booleans())
    length = s if causal else length
    heads = draw(draw_value(st.integers(0, 2**31)), b, g, r, s, length, 2 * draw_value(st.integers(1, 4)))
    mask = None
    if draw_value(st.booleans()):
        shape = [draw_value(st.sampled_from([1, side])) for side in (b, g * r, s)] + [length]
        generator = torch.Generator().manual_seed(draw_value(st.integers(0, 2**31)))
        mask = torch.rand(shape, generator=generator) < draw_value(st.sampled_from([0.1, 0.5, 0.9]))
    return heads, mask, causal, draw_value(st.integers(1, length + 3))


@settings(max_examples=70, deadline=None)
@given(attention_cases())
def test_blockwise_attention_equals_the_naive_softmax_and_gives_zeros_where_nothing_is_seen(case):
    heads, mask, causal, block_size = case
    found = blockwise_attention(*heads, mask=mask, causal=causal, block_size=block_size)
    torch.testing.assert_close(found.double(), naive(*heads, mask, causal), atol=2e-6, rtol=2e-6)
    blind = naive_weights(heads.q, heads.k, mask, causal).sum(-1) == 0
    assert (found[blind] == 0).all()


@settings(max_examples=70, deadline=None)
@given(attention_cases())
def test_attend_equals_the_naive_softmax_where_something_is_seen(case):
    heads, mask, causal, _ = case
    # torch's kernel takes a mask or causality, not both, and neither does `attend`.
    mask = None if causal else mask
    found = attend(*heads, mask=mask, causal=causal)
    seeing = naive_weights(heads.q, heads.k, mask, causal).sum(-1) > 0
    expected = naive(*heads, mask, causal)
    torch.testing.assert_close(found.double()[seeing], expected[seeing], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_a_bias_as_columns_of_the_product_is_the_bias(dtype, tolerance, is_shared):
    """As a GPU attends, whose flash kernels take none; the counts are those of missing tiles, up to thousands."""
    q, k, v = draw(3, g=3, r=1, s=9, length=40, e=20, dtype=dtype)
    bias = torch.tensor([1.0, 3, 1447, 4341]).log().repeat_interleave(10)
    bias = bias if is_shared else torch.stack([bias.roll(7 * row) for row in range(len(q))])
    scores = q.double() @ k.double().mT / math.sqrt(20) + bias.double().expand(len(q), -1)[:, None, None]
    expected = scores.softmax(-1) @ v.double()
    if dtype == torch.float32:
        assert (vision_attention.attend(q, k, v, bias=bias).double() - expected).abs().max() < tolerance
    found = attend_with_bias_as_columns(q, k, v, bias)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < tolerance
    without = (q.double() @ k.double().mT / math.sqrt(20)).softmax(-1) @ v.double()
    assert (without - expected).abs().max() > 0.1


@settings(max_examples=40, deadline=None)
@given(attention_cases())
def test_attention_weights_sum_to_1_are_0_where_hidden_and_give_what_attend_gives(case):
    (q, k, v), mask, _, _ = case
    seeing = naive_weights(q, k, mask, False).sum(-1) > 0
    found = attention_weights(q, k, mask=mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double()[seeing], naive_weights(q, k, mask, False)[seeing], atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(found.sum(-1)[seeing], torch.ones(int(seeing.sum())))
    if mask is not None:
        assert (found[seeing][~mask.broadcast_to(found.shape)[seeing]] == 0).all()
    attended = found @ v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    torch.testing.assert_close(attended[seeing], attend(q, k, v, mask=mask)[seeing], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 49, 50, 51, 1000])
@pytest.mark.parametrize("causal", [False, True])
def test_the_block_size_changes_nothing(block_size, causal):
    heads = draw(0, s=50, length=50)
    found = blockwise_attention(*heads, causal=causal, block_size=block_size)
    torch.testing.assert_close(found, attend(*heads, causal=causal), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("block_size", [1, 4, 64])
@pytest.mark.parametrize("rising", [False, True])
def test_scores_of_thousands_neither_overflow_nor_lose_the_maximum(block_size, rising):
    """The running maximum must be carried over and the sums rescaled, whichever block holds it."""
    q, k, v = draw(1, s=4, length=33)
    q = q.abs() * 300
    size = torch.linspace(-20, 20, 33) if rising else torch.linspace(20, -20, 33)
    k = k.abs() * size[:, None]
    found = blockwise_attention(q, k, v, block_size=block_size)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), naive(q, k, v), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
def test_blocks_that_a_row_may_not_see_change_nothing_at_the_start_in_the_middle_and_at_the_end(block_size):
    heads = draw(2, s=3, length=8)
    mask = torch.tensor([[0, 0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1], [0] * 8]).bool()[None, None]
    found = blockwise_attention(*heads, mask=mask, block_size=block_size)
    torch.testing.assert_close(found.double(), naive(*heads, mask), atol=2e-6, rtol=2e-6)
    assert (found[:, :, 2] == 0).all()


@pytest.mark.parametrize("shape", [(3, 1), (3, 8), (1, 8), (4, 1, 8), (2, 1, 1, 8), (1, 4, 3, 1)])
def test_masks_of_every_broadcastable_shape_are_taken_by_all_three(shape):
    q, k, v = draw(7, s=3, length=8)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[..., 0] = True
    expected = naive(q, k, v, mask.broadcast_to(2, 4, 3, 8))
    found = [function(q, k, v, mask=mask) for function in (attend, blockwise_attention)]
    found.append(attention_weights(q, k, mask=mask) @ v.repeat_interleave(2, dim=1))
    for each in found:
        torch.testing.assert_close(each.double(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("function", [attend, blockwise_attention])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_in_its_dtype_and_near(function, dtype):
    heads = draw(3, s=6, length=20, dtype=dtype)
    found = function(*heads)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), naive(*heads), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("function", [attend, blockwise_attention])
def test_inputs_are_left_as_they_were(function):
    heads, mask = draw(4), torch.ones(1, 1, 1, 7, dtype=torch.bool)
    before = [part.clone() for part in heads]
    function(*heads, mask=mask)
    assert all(torch.equal(part, old) for part, old in zip(heads, before, strict=True))
    assert mask.all()


def test_gradients_of_the_twin_equal_the_kernels():
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool).tril()
    gradients = []
    for function in (attend, blockwise_attention):
        heads = Heads(*(part.requires_grad_() for part in draw(5)))
        options = {"block_size": 3} if function is blockwise_attention else {}
        function(*heads, mask=mask, **options).square().sum().backward()
        gradients.append([part.grad for part in heads])
    for kernel, twin in zip(*gradients, strict=True):
        torch.testing.assert_close(twin, kernel, atol=1e-5, rtol=1e-4)


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("causal", [False, True])
def test_blockwise_attention_holds_no_score_matrix(causal):
    heads = draw(6, b=1, g=1, r=2, s=256, length=256, e=8)
    with _Largest() as largest:
        blockwise_attention(*heads, causal=causal, block_size=16)
    assert largest.numel <= 2 * 256 * 16, "one block of scores"
    with _Largest() as largest:
        attention_weights(heads.q[:, :, :3], heads.k)
    assert largest.numel <= max(2 * 3 * 256, heads.k.numel()), "the rows that were asked for"


@pytest.fixture
def processor(monkeypatch):
    """Has torch see another processor."""
    return lambda **found: monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"} | found
    )


def test_long_bfloat16_attention_without_amx_is_rounded_once(processor):
    processor(amx_bf16=False)
    heads = draw(0, b=1, s=400, length=400, e=32, dtype=torch.bfloat16)
    out, exact = attend(*heads), naive(*heads)
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= exact.abs() * torch.finfo(torch.bfloat16).eps / 2 + 1e-6).all()


@pytest.mark.parametrize(
    ("queries", "dtype", "found", "expected"),
    [
        (384, torch.bfloat16, {"amx_bf16": False}, torch.float32),
        (384, torch.bfloat16, {"amx_bf16": True}, torch.bfloat16),
        (384, torch.bfloat16, {"architecture": "arm64"}, torch.bfloat16),
        (383, torch.bfloat16, {"amx_bf16": False}, torch.bfloat16),
        (384, torch.float16, {"amx_bf16": False}, torch.float16),
    ],
)
def test_attention_is_in_float32_where_that_is_sooner_done(processor, queries, dtype, found, expected):
    processor(**found)
    q = torch.zeros(1, 1, queries, 8, dtype=dtype)
    assert attention_dtype(q) == expected
    assert attention_dtype(q.requires_grad_()) == dtype
    with torch.autocast("cpu"):
        assert attention_dtype(q.detach()) == dtype


@pytest.mark.parametrize("autocast", [False, True])
def test_the_encoder_hands_on_attention_in_the_dtype_of_its_products(processor, autocast):
    processor(amx_bf16=False)
    dtype = torch.float32 if autocast else torch.bfloat16
    attention = VisionAttention(16, 2).to(dtype)
    seen = []
    attention.o_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", enabled=autocast):
        out = attention(torch.randn(1, 400, 16, dtype=dtype), RowLayout(390, torch.zeros(400)))
    assert seen == [out.dtype] == [torch.bfloat16]
