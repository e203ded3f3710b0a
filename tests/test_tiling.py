"""Canvases and fitted sizes: equal to Meta's and to transformers', and to the rule itself in exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from llama_models.llama3.multimodal.image_transform import VariableSizeImageTransform
from transformers.models.mllama.image_processing_mllama import (
    get_all_supported_aspect_ratios,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)

from vision_encoder.tiling import choose_canvas, fitted_size, supported_canvases

EXTREME_SIZES = [
    (1, 1), (1, 2), (2, 1), (1, 3000), (3000, 1), (10000, 1), (1, 10000), (2240, 1), (1, 2240), (2241, 1), (1, 2241),
    (2, 65535), (65535, 2), (65535, 1), (1, 65535), (50000, 1000), (7071, 7071),
]  # fmt: skip
TILE_SIZES = (56, 448, 560)


def sizes(tile_size: int, count: int) -> list[tuple[int, int]]:
    """Extremes, every canvas with a pixel more and less on each side, squares, and `count` random shapes."""
    borders = [k * tile_size + offset for k in range(1, 5) for offset in (-1, 0, 1)]
    edges = [(height, width) for height in borders for width in borders]
    squares = [(side, side) for side in (1, 7, tile_size // 2, 3 * tile_size, 5000)]
    drawn = np.exp(np.random.default_rng(tile_size).uniform(0, math.log(6000), (count, 2))).astype(int)
    return EXTREME_SIZES + edges + squares + [tuple(map(int, size)) for size in drawn]


@pytest.mark.parametrize("max_tiles", range(1, 9))
def test_canvases_stand_in_the_order_of_hugging_faces_ids(max_tiles):
    assert list(supported_canvases(max_tiles)) == get_all_supported_aspect_ratios(max_tiles)


@pytest.mark.parametrize("max_tiles", range(1, 9))
def test_canvases_are_metas(max_tiles):
    resolutions = VariableSizeImageTransform(1).find_supported_resolutions(max_tiles, 1)
    assert sorted(supported_canvases(max_tiles)) == sorted(resolutions)
    assert len(set(supported_canvases(max_tiles))) == len(supported_canvases(max_tiles))


@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("max_tiles", [1, 2, 3, 4])
def test_canvas_and_fitted_size_equal_metas(tile_size, max_tiles):
    meta = VariableSizeImageTransform(tile_size)
    resolutions = torch.tensor(meta.find_supported_resolutions(max_tiles, tile_size))
    for size in sizes(tile_size, 250):
        best = meta.get_best_fit(size[::-1], resolutions)  # (width, height)
        canvas = choose_canvas(size, tile_size=tile_size, max_tiles=max_tiles)
        assert canvas == (best[1] // tile_size, best[0] // tile_size), size
        # Source: resize_without_distortion, whose limit of enlarging is the tile.
        target = tuple(min(max(side, tile_size), limit) for side, limit in zip(size[::-1], best, strict=True))
        width, height = meta.get_max_res_without_distortion(size[::-1], target)
        assert fitted_size(size, canvas, tile_size=tile_size) == (max(1, height), max(1, width)), size


@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("max_tiles", [1, 2, 3, 4])
def test_canvas_and_fitted_size_equal_transformers(tile_size, max_tiles):
    for size in sizes(tile_size, 250):
        best = get_optimal_tiled_canvas(*size, max_tiles, tile_size)
        canvas = choose_canvas(size, tile_size=tile_size, max_tiles=max_tiles)
        assert canvas == (best[0] // tile_size, best[1] // tile_size), size
        assert fitted_size(size, canvas, tile_size=tile_size) == get_image_size_fit_to_canvas(*size, *best, tile_size)


@pytest.mark.parametrize("max_tiles", [1, 2, 4, 6])
def test_the_canvas_upscales_least_else_downscales_least_then_is_smallest(max_tiles):
    """The rule in exact fractions, from its words alone."""

    def rank(size, canvas):
        scale = min(Fraction(canvas[0] * 56, size[0]), Fraction(canvas[1] * 56, size[1]))
        return (0, scale) if scale >= 1 else (1, -scale)

    for size in sizes(56, 1500):
        best = min((*rank(size, canvas), math.prod(canvas)) for canvas in supported_canvases(max_tiles))
        chosen = choose_canvas(size, tile_size=56, max_tiles=max_tiles)
        assert (*rank(size, chosen), math.prod(chosen)) == best, size


@pytest.mark.parametrize(
    ("size", "canvas", "fitted"),
    [
        ((1, 1), (1, 1), (56, 56)),
        ((56, 56), (1, 1), (56, 56)),
        ((57, 56), (2, 1), (57, 56)),  # fits two tiles: not enlarged past one
        ((56, 57), (1, 2), (56, 57)),
        ((112, 112), (2, 2), (112, 112)),
        ((113, 113), (2, 2), (112, 112)),
        ((20, 80), (1, 2), (20, 80)),
        ((20, 40), (1, 1), (28, 56)),
        ((40, 20), (1, 1), (56, 28)),
        ((100, 400), (1, 4), (56, 224)),
        ((400, 100), (4, 1), (224, 56)),
        ((1000, 1000), (2, 2), (112, 112)),
        ((225, 1), (4, 1), (224, 1)),
        ((1, 65535), (1, 4), (1, 224)),
    ],
)
def test_small_cases(size, canvas, fitted):
    assert choose_canvas(size, tile_size=56, max_tiles=4) == canvas
    assert fitted_size(size, canvas, tile_size=56) == fitted


@pytest.mark.parametrize("tile_size", TILE_SIZES)
def test_a_fitted_picture_stays_on_its_canvas_keeps_its_shape_and_grows_to_one_tile_at_most(tile_size):
    for height, width in sizes(tile_size, 500):
        canvas = choose_canvas((height, width), tile_size=tile_size, max_tiles=4)
        fitted = fitted_size((height, width), canvas, tile_size=tile_size)
        for side, before, tiles in zip(fitted, (height, width), canvas, strict=True):
            assert 1 <= side <= min(tiles * tile_size, max(before, tile_size))
        # One side decides the scale; the other is within a pixel of it.
        scales = (fitted[0] / height, fitted[1] / width)
        assert any(abs(scale * height - fitted[0]) <= 1 >= abs(scale * width - fitted[1]) for scale in scales)


@pytest.mark.parametrize("size", [(2241, 1), (1, 2241), (3000, 1), (1, 3000), (10000, 1), (65535, 1), (65535, 2)])
def test_sides_are_at_least_1_where_metas_become_0(size):
    canvas = choose_canvas(size, tile_size=560, max_tiles=4)
    fitted = fitted_size(size, canvas, tile_size=560)
    target = (canvas[1] * 560 if size[1] > 560 else 560, canvas[0] * 560 if size[0] > 560 else 560)
    assert 0 in VariableSizeImageTransform(560).get_max_res_without_distortion(size[::-1], target)
    assert sorted(fitted) == [1, 2240]
