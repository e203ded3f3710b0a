"""Attention of many positions in C beside float64, and what holds for any attention."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import random_model
from vision_encoder import native
from vision_encoder.attention import attend
from vision_encoder.native import attention
from vision_encoder.native.attention import attend_many
from vlm.config import preset
from vlm.kv_cache import empty_cache

EPS = torch.finfo(torch.bfloat16).eps
pytestmark = pytest.mark.skipif(attention._library() is None, reason="not run: gcc, or a processor with AVX512-BF16")


@pytest.fixture(autouse=True)
def _no_gradients(monkeypatch):
    monkeypatch.setattr(attention, "lacks_amx", lambda: True)
    monkeypatch.setattr(attention, "_MIN_KEYS", 1)
    with torch.no_grad():
        yield


def draw(heads: int, groups: int, positions: int, length: int, width: int, batch: int = 1, seed: int = 0):
    """Return queries, keys and values in bfloat16 as a projection leaves them: heads beside each other in each row."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(positions, heads), (length, groups), (length, groups)]
    return [
        torch.randn(batch, rows, parts, width, generator=generator).bfloat16().transpose(1, 2) for rows, parts in shapes
    ]


def exact(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool = False):
    """Return attention in float64, and by how much one rounding of it and one of each weight may be off."""
    times = q.shape[1] // k.shape[1]
    q, k, v = (x.double() for x in (q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)))
    logits = q @ k.mT / math.sqrt(q.shape[-1]) + (0 if bias is None else bias.double())
    if causal:
        hidden = torch.ones(logits.shape[-2:]).triu(1 + k.shape[2] - q.shape[2]).bool()
        logits.masked_fill_(hidden, -math.inf)
    weights = logits.softmax(-1)
    out = weights @ v
    spread = (weights[..., None] * (v[..., None, :, :] - out[..., None, :]).abs()).sum(-2)
    return out, EPS / 2 * (out.abs() + 1.01 * spread) + 1e-6


SHAPES = [
    (1, 1, 4, 1, 16),
    (2, 2, 33, 160, 80),
    (4, 2, 40, 161, 64),
    (3, 1, 100, 320, 128),
    (2, 1, 47, 339, 48),
    (1, 1, 81, 17, 96),
    (1, 1, 37, 200, 256),
    (1, 1, 35, 90, 176),
]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("heads", "groups", "positions", "length", "width"), SHAPES)
def test_each_weight_and_the_result_are_rounded_once(heads, groups, positions, length, width, with_bias):
    q, k, v = draw(heads, groups, positions, length, width, batch=2)
    bias = 3 * torch.randn(length) if with_bias else None
    out, (expected, bound) = attend_many(q, k, v, bias), exact(q, k, v, bias)
    assert out.shape == q.shape
    assert out.dtype == torch.bfloat16
    assert ((out.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize(
    ("positions", "length"), [(32, 32), (40, 40), (41, 41), (200, 200), (399, 399), (4, 161), (50, 160), (90, 333)]
)
@pytest.mark.parametrize("serves", [True, False])
def test_a_query_sees_the_keys_up_to_its_own(positions, length, serves, monkeypatch):
    monkeypatch.setattr(attention, "lacks_amx", lambda: serves)
    q, k, v = draw(4, 2, positions, length, 64)
    expected, bound = exact(q, k, v, causal=True)
    assert ((attend(q, k, v, causal=True).double() - expected).abs() <= (1 if serves else 2) * bound).all()


def test_what_comes_later_changes_nothing():
    q, k, v = draw(2, 1, 300, 300, 32)
    whole, start = (attend_many(*(x[:, :, :end] for x in (q, k, v)), causal=True) for end in (300, 170))
    assert torch.equal(whole[:, :, :170], start)
    assert torch.equal(whole[:, :, 170:], attend_many(q[:, :, 170:], k, v, causal=True)), "nor how it is cut"


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_equal_values_are_given_back_whatever_the_scores(size):
    q, k, v = draw(2, 2, 50, 333, 80)
    v[:] = v[:, :, :1]
    assert torch.equal(attend_many((size * q).bfloat16(), k, v), v[:, :, :1].expand_as(q))


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("hidden", [slice(0, 170), slice(160, 330), slice(330, None)])
def test_a_key_may_be_hidden_by_its_bias(hidden, lowest):
    q, k, v = draw(2, 1, 40, 400, 32)
    bias = torch.zeros(400)
    bias[hidden] = lowest
    expected, bound = exact(q, k, v, bias)
    assert ((attend_many(q, k, v, bias).double() - expected).abs() <= bound).all()


def test_a_key_with_the_logarithm_of_a_count_stands_for_so_many():
    q, k, v = draw(1, 1, 40, 30, 64)
    counts = torch.randint(1, 9, (30,))
    _, bound = exact(q, k, v, counts.log())
    many = attend_many(q, *(x.repeat_interleave(counts, 2) for x in (k, v)))
    assert ((attend_many(q, k, v, counts.log()).double() - many.double()).abs() <= 2 * bound).all()


def test_scores_far_apart_leave_the_highest_alone():
    q, k, v = draw(1, 1, 32, 500, 16)
    q[:], k[:] = 60.0, -60.0
    k[:, :, 321] = 60.0
    assert torch.equal(attend_many(q, k, v), v[:, :, 321:322].expand_as(q))


def test_pictures_of_a_batch_and_any_number_of_threads_are_as_one_alone():
    q, k, v = draw(6, 3, 90, 200, 48, batch=3)
    alone = torch.cat([attend_many(*(x[[i]] for x in (q, k, v))) for i in range(3)])
    assert torch.equal(attend_many(q, k, v), alone)
    for threads in (2, 5, 16):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(attend_many(q, k, v), alone)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_stays_none_where_it_is_seen(bad):
    q, k, v = draw(2, 2, 60, 200, 32)
    q[0, 0, 41, 3] = bad
    k[0, 1, 150, 5] = math.nan
    finite = attend_many(q, k, v).isfinite().all(-1)[0]
    assert finite[0].tolist() == [row != 41 for row in range(60)]
    assert not finite[1].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q[:, :, :3], k, v),
        lambda q, k, v: (q.float(), k.float(), v.float()),
        lambda q, k, v: (q[..., :24], k[..., :24], v[..., :24]),
        lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]),
        lambda q, k, v: (q, k, v[:, :, :40]),
        lambda q, k, v: (q[:, :1], k, v),
        lambda q, k, v: tuple(x.mT.contiguous().mT for x in (q, k, v)),
        lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta")),
        lambda q, k, v: (q, k[:, :0], v[:, :0]),
        lambda q, k, v: (q, k, v, torch.zeros(1)),
    ],
)
def test_what_it_does_not_fit_is_left_to_torch(change):
    assert attend_many(*change(*draw(2, 2, 40, 50, 32))) is None


def test_gradients_autocast_and_processors_with_amx_are_torchs(monkeypatch):
    heads = draw(2, 2, 40, 50, 32)
    with torch.enable_grad():
        assert attend_many(*heads) is None
    with torch.autocast("cpu"):
        assert attend_many(*heads) is None
    assert attend_many(*heads) is not None
    monkeypatch.setattr(attention, "lacks_amx", lambda: False)
    assert attend_many(*heads) is None


def test_without_gcc_torch_serves_and_that_is_said_once(monkeypatch, tmp_path, caplog):
    heads = draw(2, 2, 40, 50, 32)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    attention._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            outs = [attend(*heads) for _ in range(2)]
    finally:
        attention._library.cache_clear()
    (record,) = caplog.records
    assert record.message.startswith("vision_encoder/native is not in use: gcc could not build it")
    expected, bound = exact(*heads)
    assert ((outs[0].double() - expected).abs() <= 2 * bound).all()


def test_without_a_home_torch_serves(monkeypatch, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", no_home)
    attention._library.cache_clear()
    try:
        assert attend_many(*draw(2, 2, 40, 50, 32)) is None
    finally:
        attention._library.cache_clear()
    assert "(RuntimeError)" in caplog.text


def test_a_processor_without_the_instructions_is_told_before_anything_is_built(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert native.load(tmp_path, (), {}, needs="avx512_bf16") is None
    assert "this processor has no avx512_bf16" in caplog.text


class _Seen(TorchDispatchMode):
    """Notes what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "watch",
    [
        lambda call, heads: torch.jit.trace(lambda q, k, v: call(q, k, v), heads, check_trace=False)(*heads),
        lambda call, heads: make_fx(lambda q, k, v: call(q, k, v))(*heads)(*heads),
        lambda call, heads: torch.func.vmap(call)(*(x[None] for x in heads))[0],
    ],
    ids=["trace", "make_fx", "vmap"],
)
def test_who_records_or_transforms_what_is_done_is_given_torchs(watch):
    heads = draw(2, 2, 40, 64, 32)
    assert (watch(attend, tuple(heads)).double() - exact(*heads)[0]).abs().max() < 0.05
    with _Seen() as seen:
        attend(*heads)
    assert any("scaled_dot_product" in name for name in seen.names)


def test_what_two_of_the_three_would_hide_is_refused():
    q, k, v = draw(2, 2, 40, 64, 32)
    hidden = torch.ones(40, 64, dtype=torch.bool)
    for both in ({"mask": hidden, "causal": True}, {"bias": torch.zeros(64), "causal": True}):
        with pytest.raises(ValueError, match="give one of bias, mask and causal"):
            attend(q, k, v, **both)
    with pytest.raises(ValueError, match="with at least 64 keys, not 40"):
        attend(k, q, q, causal=True)


@pytest.fixture
def served(monkeypatch):
    """Which calls of `attend` were done in C."""
    found = []

    def noted(*args, **kind):
        out = attend_many(*args, **kind)
        found.append(out is not None)
        return out

    monkeypatch.setattr("vision_encoder.attention.attend_many", noted)
    return found


def test_the_encoder_attends_in_c(served):
    vision = replace(preset("tiny").vision, width=32)
    encoder = random_model(replace(preset("tiny"), vision=vision)).encoder
    pixels = torch.randn(1, 2, 3, vision.tile_size, vision.tile_size)
    expected, served[:] = encoder(pixels, [(1, 2)]), []
    found = encoder.bfloat16()(pixels, [(1, 2)])
    assert any(served)
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
def test_the_chunks_of_a_prompt_are_attended_to_in_c(served, cache_dtype):
    config = preset("tiny")
    config = replace(
        config, decoder=replace(config.decoder, width=64 * config.decoder.num_heads), vision=None, adapter=None
    )
    decoder = random_model(config).decoder
    ids = torch.randint(0, config.decoder.vocab_size, (1, 90))
    expected, served[:] = decoder(ids).hidden, []
    decoder.bfloat16()
    cache = empty_cache(config.decoder, 1, 90, dtype=cache_dtype, device="cpu")
    found = []
    for part in ids.split([65, 5, 20], dim=1):
        hidden, cache = decoder(part, cache)
        found.append(hidden)
    assert all(served)
    assert (torch.cat(found, 1).float() - expected).norm() < 0.03 * expected.norm()
