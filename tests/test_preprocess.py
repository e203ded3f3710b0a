"""Pictures to tiles: Meta's pixels to the last level, transformers' within one, and what each part must do."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from llama_models.llama3.multimodal.image_transform import VariableSizeImageTransform
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional
from transformers import MllamaImageProcessor

from tests.image_files import noise_picture
from vision_encoder.config import VisionConfig
from vision_encoder.preprocess import MEAN, STD, ImageProcessor

# (height, width)
EXTREME_SIZES = [(1, 1), (2, 1), (1, 2), (3, 3), (1, 224), (224, 1), (1, 200), (300, 2), (2, 448), (900, 5), (800, 799)]
FLAT_SIZES = [(1, 3000), (10000, 1), (2241, 1), (1, 2241), (65535, 1), (1, 65535)]


def processor(tile_size: int = 56, max_tiles: int = 4) -> ImageProcessor:
    return ImageProcessor(
        VisionConfig(
            tile_size=tile_size,
            max_tiles=max_tiles,
            patch_size=14,
            width=8,
            num_heads=1,
            mlp_dim=8,
            num_local_layers=1,
            num_global_layers=0,
            feature_layers=(),
        )
    )


def random_sizes(seed: int, count: int) -> list[tuple[int, int]]:
    drawn = np.exp(np.random.default_rng(seed).uniform(0, math.log(400), (count, 2))).astype(int)
    return [(int(height), int(width)) for height, width in drawn]


def levels(pixels: Tensor) -> Tensor:
    """Return what was normalised, in grey levels."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels * std + mean) * 255


def assert_same_levels(found: Tensor, expected: Tensor, size: tuple[int, int]) -> None:
    """Equal in every grey level; the normalised floats differ by their last bit, for torchvision divides otherwise."""
    assert found.shape == expected.shape, size
    assert torch.equal(levels(found).round(), levels(expected).round()), size
    assert (found - expected).abs().max() < 1e-6, size


def transformers_tiles(picture: Image.Image, tile_size: int, max_tiles: int = 4) -> tuple[Tensor, int]:
    """Return transformers' tiles [max_tiles, c, y, x], missing ones too, and its canvas id."""
    theirs = MllamaImageProcessor(
        size={"height": tile_size, "width": tile_size},
        max_image_tiles=max_tiles,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    found = theirs(images=picture, return_tensors="pt")
    return found["pixel_values"][0, 0], found["aspect_ratio_ids"].item()


@pytest.mark.parametrize("max_tiles", [1, 2, 3, 4])
def test_pixels_equal_metas_to_the_last_level(max_tiles):
    ours, metas = processor(max_tiles=max_tiles), VariableSizeImageTransform(56)
    for size in EXTREME_SIZES + random_sizes(max_tiles, 70):
        if max(size) > 56 * max_tiles * min(size):
            continue  # Meta's side would be 0
        picture = noise_picture(size)
        expected, canvas = metas(picture.copy(), max_tiles)
        found = ours(picture)
        assert found.canvas == canvas, size
        assert_same_levels(found.pixels, expected, size)


def test_pixels_are_torchvisions_bit_for_bit():
    ours = processor()
    for size in EXTREME_SIZES + random_sizes(5, 40):
        picture = noise_picture(size)
        found = ours(picture)
        fitted = list(ours.placement(size)[1])
        image = functional.resize(picture, fitted, interpolation=functional.InterpolationMode.BILINEAR)
        padded = Image.new("RGB", (found.canvas[1] * 56, found.canvas[0] * 56))
        padded.paste(image)
        pixels = functional.to_dtype(functional.pil_to_tensor(padded), torch.float32, scale=True)
        pixels = functional.normalize(pixels, list(MEAN), list(STD))
        expected = rearrange(pixels, "c (rows y) (cols x) -> (rows cols) c y x", y=56, x=56)
        assert torch.equal(found.pixels, expected), size


@pytest.mark.parametrize("tile_size", [448, 560])
@pytest.mark.parametrize("size", [(300, 500), (1300, 700), (100, 2300), (561, 560)])
def test_pixels_equal_metas_at_the_published_tile_sizes(tile_size, size):
    picture = noise_picture(size)
    expected, canvas = VariableSizeImageTransform(tile_size)(picture.copy(), 4)
    found = processor(tile_size)(picture)
    assert found.canvas == canvas
    assert_same_levels(found.pixels, expected, size)


@pytest.mark.parametrize("max_tiles", [1, 2, 4])
def test_pixels_equal_transformers_within_one_level(max_tiles):
    """It resizes tensors, whose weights are rounded otherwise than a PIL image's."""
    ours = processor(max_tiles=max_tiles)
    for size in EXTREME_SIZES + FLAT_SIZES[:4] + random_sizes(10 + max_tiles, 15):
        picture = noise_picture(size)
        expected, canvas_id = transformers_tiles(picture, 56, max_tiles)
        found = ours(picture)
        assert ours.config.canvases.index(found.canvas) + 1 == canvas_id, size
        assert (levels(found.pixels) - levels(expected[: len(found.pixels)])).abs().max() < 1.01, size
        assert (expected[len(found.pixels) :] == 0).all(), "a missing tile is zero after normalising"


@pytest.mark.parametrize("size", FLAT_SIZES)
def test_flat_pictures_that_meta_refuses_are_taken(size):
    with pytest.raises(ValueError, match="must be > 0"):
        VariableSizeImageTransform(560)(Image.new("RGB", size[::-1]), 4)
    pixels, canvas = processor(560)(Image.new("RGB", size[::-1], (255, 0, 0)))
    assert canvas == ((4, 1) if size[0] > size[1] else (1, 4))
    assert pixels.shape == (4, 3, 560, 560)
    lit = (levels(pixels)[:, 0] > 254).sum()
    assert lit == 2240, "one row of pixels over the whole canvas"


def test_arrays_and_tensors_give_the_pixels_of_the_picture():
    for size in [(1, 1), (30, 100), (100, 30), (3, 200), (57, 56)]:
        picture = noise_picture(size)
        array = np.asarray(picture)
        expected = processor()(picture)
        for same in (array, torch.tensor(array).permute(2, 0, 1)):
            found = processor()(same)
            assert found.canvas == expected.canvas
            assert (levels(found.pixels) - levels(expected.pixels)).abs().max() < 1.01
            assert torch.equal(found.pixels, expected.pixels)


@pytest.mark.parametrize("canvas", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (3, 1)])
def test_tiles_stand_row_by_row(canvas):
    rows, cols = canvas
    picture = Image.new("RGB", (cols * 56, rows * 56))
    for tile in range(rows * cols):
        colour = (10 + 40 * tile, 20 * tile, 255 - 50 * tile)
        picture.paste(colour, (tile % cols * 56, tile // cols * 56, (tile % cols + 1) * 56, (tile // cols + 1) * 56))
    pixels, found = processor()(picture)
    assert found == canvas
    for tile in range(rows * cols):
        expected = torch.tensor([10.0 + 40 * tile, 20 * tile, 255 - 50 * tile])[:, None, None].expand(3, 56, 56)
        torch.testing.assert_close(levels(pixels[tile]), expected, atol=1e-3, rtol=0)


def test_padding_lies_right_and_below_and_is_black_before_normalising():
    pixels, canvas = processor()(Image.new("RGB", (100, 40), (255, 255, 255)))
    assert canvas == (1, 2)
    black = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(pixels[0, :, 40:], black[:, None, None].expand(3, 16, 56))
    torch.testing.assert_close(pixels[1, :, :, 44:], black[:, None, None].expand(3, 56, 12))
    white = levels(torch.cat([pixels[0, :, :40], pixels[1, :, :40, :44]], dim=-1))
    torch.testing.assert_close(white, torch.full_like(white, 255), atol=1e-3, rtol=0)


def test_a_small_picture_grows_to_one_tile_and_no_further():
    picture = noise_picture((20, 40))
    grown = functional.resize(picture, [28, 56], interpolation=functional.InterpolationMode.BILINEAR)
    pixels, canvas = processor()(picture)
    assert canvas == (1, 1)
    expected = functional.pil_to_tensor(grown).float()
    torch.testing.assert_close(levels(pixels[0, :, :28]), expected, atol=1e-3, rtol=0)
    # Wider than a tile, it is taken as it is.
    wide = noise_picture((20, 80))
    pixels, canvas = processor()(wide)
    assert canvas == (1, 2)
    expected = functional.pil_to_tensor(wide).float()
    found = levels(torch.cat(list(pixels[:, :, :20]), dim=-1)[..., :80])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_only_real_tiles_come_back_in_float32():
    pixels, canvas = processor()(noise_picture((30, 160)))
    assert (canvas, pixels.shape, pixels.dtype) == ((1, 3), (3, 3, 56, 56), torch.float32)


def test_the_picture_that_was_given_is_unchanged():
    picture = noise_picture((70, 90))
    before = picture.tobytes()
    processor()(picture)
    assert (picture.size, picture.mode, picture.tobytes()) == ((90, 70), "RGB", before)


def test_placement_says_where_the_picture_goes_without_making_it():
    assert processor(560).placement((700, 300)) == ((2, 1), (700, 300))
    assert processor(560, max_tiles=1).placement((700, 300)) == ((1, 1), (560, 240))


def test_mean_and_standard_deviation_are_metas():
    metas = VariableSizeImageTransform(56)
    assert (metas._mean, metas._std) == (MEAN, STD)
