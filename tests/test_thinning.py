"""One blank patch stands for many: exactly where they are alike, and nothing is thinned where nothing is blank."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import random_model
from tests.test_reader_thinning import CANVASES, SIDE, SIZE, dark, pages, reader_on
from vision_encoder.attention import attend
from vision_encoder.preprocess import normalise
from vision_encoder.thinning import BLANKS_FOR_ONE, SHARE_GIVEN, given, keep
from vlm.config import preset

TINY = preset("tiny")


@pytest.mark.parametrize("canvas", CANVASES)
def test_ink_stands_for_itself_and_a_blank_patch_for_many(canvas):
    pixels = pages(canvas)
    for picture, ink in zip(pixels, dark(pixels), strict=True):
        kept = keep(picture, canvas, SIZE)
        patches, stand_ins = kept.patches[0], kept.stand_ins[0]
        assert {*np.flatnonzero(ink).tolist()} <= {*patches.tolist()}
        # What stays stands for itself.
        assert torch.equal(patches[stand_ins[patches]], patches)
        counts = stand_ins.bincount()
        torch.testing.assert_close(kept.log_counts[0].exp(), counts.float())
        assert counts.max() <= BLANKS_FOR_ONE
        assert not ink[patches[counts > 1].numpy()].any()
        assert len(patches) < 0.6 * len(ink)


@pytest.mark.parametrize("canvas", CANVASES)
def test_where_blank_patches_are_alike_features_are_the_encoders(canvas):
    """Without positions all blank patches are equal rows."""
    encoder, pixels = reader_on(canvas).model.encoder, pages(canvas)[:1]
    with torch.no_grad():
        encoder.patch_position.embedding.zero_()
        encoder.patch_position.table.zero_()
        encoder.inspect_tables()
        kept = keep(pixels[0], canvas, SIZE)
        found = encoder(normalise(pixels), [canvas], kept)
        expected = encoder(normalise(pixels), [canvas])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        unweighted = kept._replace(log_counts=torch.zeros_like(kept.log_counts))
        assert (encoder(normalise(pixels), [canvas], unweighted) - expected).abs().max() > 0.05


@pytest.mark.parametrize("canvas", [(1, 1), (1, 2), (2, 2), (1, 3)])
@pytest.mark.parametrize("max_tiles", [4, 5])
def test_of_a_picture_full_of_ink_nothing_is_thinned(canvas, max_tiles):
    """Learned positions, and missing tiles whose patches differ."""
    vision = replace(TINY.vision, max_tiles=max_tiles)
    encoder = random_model(replace(TINY, vision=vision)).encoder
    assert not encoder.missing_patches_equal
    side, tiles = vision.tile_size, canvas[0] * canvas[1]
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (tiles, 3, side, side), dtype=np.uint8))
    kept = keep(levels, canvas, vision.patch_size)
    assert kept.patches.shape[1] == tiles * vision.num_patches
    with torch.no_grad():
        pixels = normalise(levels)[None]
        torch.testing.assert_close(encoder(pixels, [canvas], kept), encoder(pixels, [canvas]), rtol=1e-5, atol=1e-5)


def test_patches_of_a_missing_tile_are_alike_where_positions_are_made():
    encoder = reader_on((2, 2)).model.encoder
    assert encoder.missing_patches_equal
    with torch.no_grad():
        encoder.patch_position.table[1, 3, 5] += 1
    encoder.inspect_tables()
    assert not encoder.missing_patches_equal


def test_blank_paper_is_thinned_too():
    levels = torch.full((4, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    kept = keep(levels, (2, 2), SIZE)
    assert kept.patches.shape[1] == -(-400 // BLANKS_FOR_ONE)
    assert float(kept.log_counts.exp().sum()) == pytest.approx(400)


@pytest.mark.parametrize("canvas", CANVASES)
def test_the_decoder_is_given_what_stays_and_blank_patches_to_fill_up(canvas):
    tiles, per_tile = canvas[0] * canvas[1], (SIDE // SIZE) ** 2
    kept = keep(pages(canvas)[0], canvas, SIZE)
    tokens = given(kept, tiles)
    tile, place = tokens // (per_tile + 1), tokens % (per_tile + 1)
    # The class tokens, one a tile.
    assert tile[place == 0].tolist() == list(range(tiles))
    patches = (tile * per_tile + place - 1)[place > 0].tolist()
    assert {*kept.patches[0].tolist()} <= {*patches}
    assert len(patches) == len({*patches}) == int(SHARE_GIVEN * tiles * per_tile)


def test_of_a_picture_full_of_ink_the_decoder_is_given_all():
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, SIDE, SIDE), dtype=np.uint8))
    assert given(keep(levels, (1, 1), SIZE), 1).tolist() == list(range(101))


def test_a_bias_of_one_picture_takes_the_way_of_one_for_all():
    """To the bit: in C where there is no matrix unit, which takes one bias alone."""
    q, k, v = torch.randn(3, 1, 2, 512, 48, dtype=torch.float32).bfloat16()
    bias = torch.rand(512)
    with torch.no_grad():
        assert torch.equal(attend(q, k, v, bias=bias[None]), attend(q, k, v, bias=bias))
