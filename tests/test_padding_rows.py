"""Padding rows spelled out one by one, as a GPU soonest attends, say what counted ones say."""

import math

import pytest
import torch

from tests.nearness import difference
from tests.test_vision_encoder import CANVASES, TINY, build, draw, features, fill_slots
from vision_encoder.attention import attend


@pytest.fixture
def spelled_out(monkeypatch):
    """Has the encoder lay its rows out as on a GPU from now on."""
    return lambda: monkeypatch.setattr("vision_encoder.encoder._takes_no_bias", lambda device: True)


@pytest.mark.parametrize(
    ("max_tiles", "canvas"), [(max_tiles, canvas) for max_tiles in (1, 3, 4) for canvas in CANVASES[max_tiles]]
)
@pytest.mark.parametrize("slots", ["used", "all"])
def test_padding_rows_spelled_out_give_the_features_of_counted_ones(spelled_out, max_tiles, canvas, slots):
    encoder = build(max_tiles=max_tiles)
    pixels, slots = draw(encoder, canvas), max_tiles if slots == "all" else math.prod(canvas)
    counted = features(encoder, (pixels, canvas), slots=slots)
    spelled_out()
    assert difference(features(encoder, (pixels, canvas), slots=slots), counted) < 1e-4


def test_a_batch_of_which_some_pictures_use_all_tiles_gives_the_features_of_counted_rows(spelled_out):
    encoder = build()
    pictures = [(draw(encoder, canvas, seed), canvas) for seed, canvas in enumerate([(2, 2), (1, 3), (4, 1), (1, 1)])]
    counted = features(encoder, *pictures)
    spelled_out()
    assert difference(features(encoder, *pictures), counted) < 1e-4


@pytest.mark.parametrize("how", ["equal", "other"])
def test_rows_have_no_counts_exactly_where_no_tile_is_missing(spelled_out, how):
    encoder = build()
    fill_slots(encoder, "patch_position", how)
    device = torch.device("cpu")
    counted = [encoder.plan(used, device) for used in (1, 2, 3, 4)]
    assert all(plan.layout.log_counts is not None and plan.num_padding == plan.used for plan in counted)
    spelled_out()
    for before in counted:
        plan = encoder.plan(before.used, device)
        missing = before.used < TINY.max_tiles
        assert (plan.layout.log_counts is not None) == missing
        assert plan.num_padding == before.used * (1 if missing else TINY.num_padding_tokens)
        shares = torch.zeros(len(plan.slots)) if plan.layout.log_counts is None else plan.layout.log_counts
        assert len(shares) == len(plan.slots)
        # However they are told, the rows stand for those of Meta's encoder.
        assert shares.exp().sum() == pytest.approx(
            TINY.max_tiles * (TINY.tokens_per_tile + TINY.num_padding_tokens), rel=1e-5
        )


def test_only_a_gpu_spells_padding_rows_out():
    encoder = build()
    assert encoder.plan(4, torch.device("cpu")).num_padding == 4
    assert encoder.plan(4, torch.device("meta")).num_padding == 4


@pytest.mark.parametrize(("length", "width"), [(264, 48), (40, 8), (1030, 80)])
def test_a_float32_bias_is_added_whole_to_float64_logits(length, width):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, rows, width, generator=generator).double() for rows in (length, length, length))
    bias = torch.randint(1, 5000, (length,), generator=generator).float().log()
    expected = (q @ k.mT / math.sqrt(width) + bias.double()).softmax(-1) @ v
    assert difference(attend(q, k, v, bias=bias), expected) < 1e-6
