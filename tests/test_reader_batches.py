"""Batches for the reader: functions of their index, whose targets lie where their pixels do."""

from dataclasses import replace

import pytest
import torch

from vision_encoder.preprocess import normalise
from vision_encoder.thinning import by_tiles, inked
from vlm.config import preset
from vlm.training.reader.data import ReaderData
from vlm.training.reader.diet import Diet
from vlm.training.reader.targets import IGNORED, SPELL
from vlm.training.reader.vocabulary import reader_tokenizer

TOKENIZER = reader_tokenizer()


@pytest.mark.parametrize(("sheets", "max_tiles"), [(0.0, 1), (0.0, 4), (1.0, 4)])
def test_a_batch_is_a_function_of_its_index_and_its_targets_fit(sheets, max_tiles):
    vision = replace(preset("default").vision, max_tiles=max_tiles)
    diet = Diet(num_images=4, share_pages=0.2, num_questions=3, share_sheets=sheets, max_shrink=1.3)
    data, again = (ReaderData(vision, TOKENIZER, diet, num_batches=9, seed=4) for _ in range(2))
    for index in (0, 5):
        batch, twin = data[index], again[index]
        num_patches = batch.canvas[0] * batch.canvas[1] * vision.num_patches
        assert torch.equal(batch.pixels, twin.pixels)
        assert batch.characters.shape[1] == batch.links.label.shape[1] == num_patches
        for group in batch.groups:
            assert group.pointers.shape == (len(group.ids), 5, group.ids.shape[1])
            assert group.places.shape[1] == num_patches
            assert group.places[1:].any(-1).all()
            assert set(group.pointers.unique().tolist()) <= set(range(len(group.places)))
            assert (group.labels != IGNORED).any(-1).all()
            assert (group.ids[:, group.first_seeing] == TOKENIZER.image_marker_id).all()
    assert not torch.equal(data[0].pixels[0, 0], data[1].pixels[0, 0])


@pytest.mark.parametrize("sheets", [0.0, 1.0])
def test_batches_of_everything_are_functions_of_their_index_and_what_is_declined_points_nowhere(sheets):
    vision = preset("default").vision
    diet = Diet(
        num_images=24,
        share_pages=0.1,
        num_questions=4,
        share_sheets=sheets,
        share_several_series=0.3,
        share_wide_charts=0.5,
        share_wide_questions=0.8,
        share_declined=0.3,
        share_diagrams=0.3,
        share_no_charts=0.3,
    )
    data, again = (ReaderData(vision, TOKENIZER, diet, num_batches=9, seed=1) for _ in range(2))
    batch, twin = data[2], again[2]
    kinds = [kind for group in batch.groups for kind in group.kinds]
    assert any(kind.startswith("diagram_") for kind in kinds)
    assert "declined" in kinds
    assert {"named_value", "series_value"} & {*kinds}
    assert torch.equal(batch.pixels, twin.pixels)
    for group, same in zip(batch.groups, twin.groups, strict=True):
        assert torch.equal(group.ids, same.ids)
        assert torch.equal(group.pointers, same.pointers)
        assert group.places[1:].any(-1).all()
        for row, kind in enumerate(group.kinds):
            assert kind != "declined" or not group.pointers[row].any()
            if kind in ("diagram_neighbour", "diagram_named"):
                assert group.pointers[row][SPELL].any()


def test_stretched_charts_are_functions_of_their_index_and_lie_on_the_same_canvas():
    vision = preset("default").vision
    diet = Diet(num_images=8, share_pages=0.0, num_questions=2, share_sheets=0.5, share_wide_charts=0.5)
    wide = replace(diet, max_stretch=1.25)
    plain, data, again = (ReaderData(vision, TOKENIZER, each, num_batches=9, seed=1) for each in (diet, wide, wide))
    for index in range(4):
        batch, twin = data[index], again[index]
        assert torch.equal(batch.pixels, twin.pixels)
        assert batch.pixels.shape == plain[index].pixels.shape
        assert not torch.equal(batch.pixels, plain[index].pixels)


def test_enlarged_charts_tell_of_print_where_there_is_ink():
    vision = preset("default").vision
    diet = Diet(num_images=8, share_pages=0.0, num_questions=2, share_sheets=0.5)
    plain, data = (
        ReaderData(vision, TOKENIZER, each, num_batches=9, seed=1) for each in (diet, replace(diet, max_enlarge=1.5))
    )
    shares = []
    for index in range(4):
        batch = data[index]
        assert batch.pixels.shape == plain[index].pixels.shape
        assert not torch.equal(batch.pixels, plain[index].pixels)
        ink = inked(batch.pixels, batch.canvas, vision.patch_size)
        printed = batch.characters[..., 0] > 0
        shares.append(by_tiles(ink, batch.canvas)[printed].float().mean())
    assert min(shares) > 0.99


def test_a_wrong_patch_order_would_be_noticed():
    """Pixels and targets go through different code; a patch with print in it must be one with ink in it."""
    vision = replace(preset("default").vision, max_tiles=4)
    batch = ReaderData(
        vision, TOKENIZER, Diet(num_images=2, share_pages=0.0, num_questions=0, share_sheets=1.0), num_batches=9, seed=1
    )[3]
    assert batch.canvas[0] * batch.canvas[1] > 1
    size = vision.patch_size
    patches = normalise(batch.pixels).unfold(3, size, size).unfold(4, size, size).flatten(-2)
    contrast = (patches.amax(-1) - patches.amin(-1)).amax(2).flatten(1)
    printed = (batch.characters > 0).any(-1)
    assert (contrast[printed] > 0.3).float().mean() > 0.98
    assert (contrast[~printed] > 0.3).float().mean() < 0.6
