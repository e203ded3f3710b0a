"""Rotary positions beside Meta's complex numbers and transformers' halves, and the laws of a rotation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.llama3.model import apply_rotary_emb, precompute_freqs_cis
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from vlm.config import DecoderConfig, RopeScaling, preset
from vlm.rope import Rotation, frequencies, rotate, rotation

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def config(head_dim: int = 64, factor: float | None = 8.0, **changes) -> DecoderConfig:
    scaling = None if factor is None else RopeScaling(factor=factor)
    sizes = {"width": 2 * head_dim, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 8, "vocab_size": 8}
    return DecoderConfig(**sizes, rope_scaling=scaling, **changes)


def turn(head_dim: int, positions: list[int], factor: float | None = 8.0) -> Rotation:
    return rotation(config(head_dim, factor), torch.tensor([positions]))


@pytest.mark.parametrize(("head_dim", "end"), [(128, 2048), (64, 2048), (8, 131072)])
def test_angles_of_factor_8_equal_metas(head_dim, end):
    expected = precompute_freqs_cis(head_dim, end, 500000.0, use_scaled=True)
    found = turn(head_dim, list(range(end)))
    half = head_dim // 2
    for part, theirs in ((found.cos, expected.real), (found.sin, expected.imag)):
        assert part.shape == (1, 1, end, head_dim)
        assert torch.equal(part[..., :half], part[..., half:])
        # A last-bit difference of a frequency is 131072 times as large in the angle of the last position.
        torch.testing.assert_close(part[0, 0, :, :half], theirs, atol=1e-6 + 1.2e-7 * end, rtol=0)


def test_angles_without_scaling_equal_metas():
    expected = precompute_freqs_cis(64, 1000, 500000.0, use_scaled=False)
    found = turn(64, list(range(1000)), factor=None)
    torch.testing.assert_close(found.cos[0, 0, :, :32], expected.real, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.sin[0, 0, :, :32], expected.imag, atol=1e-4, rtol=0)


def transformers_rotary(head_dim: int, factor: float) -> LlamaRotaryEmbedding:
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **scaling}
    sizes = {"hidden_size": 2 * head_dim, "num_attention_heads": 2, "max_position_embeddings": 131072}
    return LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=rope))


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequencies_equal_transformers(factor, head_dim):
    found = frequencies(config(head_dim, factor), CPU)
    torch.testing.assert_close(found, transformers_rotary(head_dim, factor).inv_freq, atol=0, rtol=1e-6)


@pytest.mark.parametrize(("name", "factor"), [("1b", 32), ("3b", 32), ("8b", 8), ("70b", 8), ("11b-vision", 8)])
def test_presets_slow_the_slowest_pair_by_their_factor(name, factor):
    decoder = preset(name).decoder
    slowest = frequencies(decoder, CPU)[-1]
    plain = 500000.0 ** -((decoder.head_dim - 2) / decoder.head_dim)
    assert slowest.item() == pytest.approx(plain / factor, rel=1e-5)


def test_fast_pairs_are_kept_slow_ones_slowed_whole_and_those_between_blended_once():
    """Both bends by hand: 8192 / 4 and 8192 / 1 are the wavelengths where keeping ends and slowing begins."""
    plain, scaled = (frequencies(config(128, factor), CPU).double() for factor in (None, 8.0))
    for kept, slowed in zip(plain.tolist(), scaled.tolist(), strict=True):
        wavelength = 2 * math.pi / kept
        if wavelength < 8192 / 4:
            expected = kept
        elif wavelength > 8192:
            expected = kept / 8
        else:
            smooth = (8192 / wavelength - 1) / 3
            expected = (1 - smooth) * kept / 8 + smooth * kept
        assert slowed == pytest.approx(expected, rel=1e-6)
    ratios = (scaled / plain).tolist()
    assert ratios == sorted(ratios, reverse=True)
    assert 0.125 < sorted(set(ratios))[1] < 1, "some pair lies between"


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rotated_queries_and_keys_equal_transformers(factor):
    q, k = torch.randn(2, 4, 7, 64), torch.randn(2, 2, 7, 64)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [90, 91, 200, 3000, 5, 6, 8191]])
    expected = apply_rotary_pos_emb(q, k, *transformers_rotary(64, factor)(q, positions))
    by = rotation(config(64, factor), positions)
    for x, theirs in zip((q, k), expected, strict=True):
        torch.testing.assert_close(rotate(x, by), theirs, atol=2e-3, rtol=0)
        torch.testing.assert_close(rotate(x, by)[:, :, :3], theirs[:, :, :3], atol=5e-5, rtol=0)


def test_rotated_queries_and_keys_equal_metas_after_its_order_of_halves():
    """Meta turns the pairs (2 i, 2 i + 1), Hugging Face's checkpoints and ours (i, i + e / 2)."""
    q, k = torch.randn(2, 9, 4, 64), torch.randn(2, 9, 2, 64)  # Meta's [b, s, heads, e]
    theirs = apply_rotary_emb(q, k, precompute_freqs_cis(64, 9, 500000.0, use_scaled=True))

    def halves(x: Tensor) -> Tensor:
        return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1).transpose(1, 2)

    for x, expected in zip((q, k), theirs, strict=True):
        found = rotate(halves(x), turn(64, list(range(9))))
        torch.testing.assert_close(found, halves(expected), atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 131071), min_size=1, max_size=5), st.integers(0, 2**31), st.sampled_from([2, 8, 64]))
def test_rotation_keeps_the_length_of_every_pair(positions, seed, head_dim):
    x = torch.randn(1, 2, len(positions), head_dim, generator=torch.Generator().manual_seed(seed))
    turned = rotate(x, turn(head_dim, positions))
    half = head_dim // 2
    before, after = (torch.hypot(y[..., :half], y[..., half:]) for y in (x, turned))
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 3000), st.integers(0, 2**31))
def test_scores_depend_on_the_distance_alone(first, second, shift, seed):
    q, k = torch.randn(2, 1, 1, 1, 64, generator=torch.Generator().manual_seed(seed))
    near = (rotate(q, turn(64, [first])) * rotate(k, turn(64, [second]))).sum()
    far = (rotate(q, turn(64, [first + shift])) * rotate(k, turn(64, [second + shift]))).sum()
    torch.testing.assert_close(far, near, atol=0.02, rtol=0)


def test_the_distance_matters_and_has_a_sign():
    q, k = torch.randn(2, 1, 1, 1, 64, generator=torch.Generator().manual_seed(0))
    scores = [(rotate(q, turn(64, [5])) * rotate(k, turn(64, [place]))).sum().item() for place in (2, 5, 8)]
    assert min(abs(scores[0] - scores[1]), abs(scores[1] - scores[2]), abs(scores[0] - scores[2])) > 0.1


def test_position_0_turns_nothing():
    x = torch.randn(1, 2, 1, 64)
    assert torch.equal(rotate(x, turn(64, [0])), x)


def test_rows_may_stand_at_other_positions():
    by = rotation(config(), torch.tensor([[0, 1], [40, 41]]))
    x = torch.randn(1, 3, 2, 64).expand(2, -1, -1, -1)
    found = rotate(x, by)
    assert torch.equal(found[0], rotate(x[:1], turn(64, [0, 1]))[0])
    assert torch.equal(found[1], rotate(x[:1], turn(64, [40, 41]))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_turned_in_float32_and_comes_back_in_its_dtype(dtype):
    x = torch.randn(1, 2, 3, 64).to(dtype)
    by = turn(64, [7, 700, 7000])
    assert by.cos.dtype == torch.float32
    assert torch.equal(rotate(x, by), rotate(x.float(), by).to(dtype))
    assert rotate(x, by).dtype == dtype
