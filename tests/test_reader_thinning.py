"""The encoder goes through few of the blank patches, and what it makes of the others is the same on average."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vision_encoder.config import VisionConfig
from vision_encoder.encoder import VisionEncoder
from vision_encoder.preprocess import normalise
from vision_encoder.thinning import Kept
from vlm.config import preset
from vlm.training.reader.data import Diet, ReaderBatch, ReaderData, thinned
from vlm.training.reader.model import Losses, Reader
from vlm.training.reader.sinusoids import retile
from vlm.training.reader.thinning import keep
from vlm.training.reader.vocabulary import reader_tokenizer

SIZE, SIDE = 8, 80
VISION = replace(preset("default").vision, tile_size=SIDE)
CANVASES = [(1, 1), (1, 2), (2, 2)]


def pages(canvas: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Return two white pictures [2, t, 3, side, side], the first with five dark patches, the second with one."""
    draw = np.random.default_rng(seed)
    tiles, grid = canvas[0] * canvas[1], SIDE // SIZE
    pixels = torch.full((2, tiles, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    for picture, count in enumerate((5, 1)):
        for place in draw.choice(tiles * grid * grid, count, replace=False):
            tile, row, col = np.unravel_index(place, (tiles, grid, grid))
            rows, cols = (slice(SIZE * at, SIZE * at + SIZE) for at in (row, col))
            pixels[picture, tile, :, rows, cols] = torch.from_numpy(draw.integers(0, 255, (3, SIZE, SIZE))).byte()
    return pixels


def reader_on(canvas: tuple[int, int], vision: VisionConfig = VISION) -> Reader:
    torch.manual_seed(0)
    reader = Reader(preset("default"))
    retile(reader.model, replace(vision, max_tiles=1 if canvas == (1, 1) else 4))
    for layer in reader.model.encoder.global_layers:
        torch.nn.init.constant_(layer.attention_gate, 0.7)
    return reader


def encode_rows(encoder: VisionEncoder, pixels: torch.Tensor, canvas: tuple[int, int], kept: Kept | None):
    canvas_ids = torch.full((len(pixels),), 1 + encoder.config.canvases.index(canvas))
    return encoder.encode_kept(pixels, canvas_ids, kept)


def dark(pixels: torch.Tensor) -> np.ndarray:
    """Return which patches [m, p] hold ink, counted one by one."""
    grid = SIDE // SIZE
    return np.array(
        [
            [
                bool((tile[:, SIZE * y : SIZE * y + SIZE, SIZE * x : SIZE * x + SIZE] < 255).any())
                for tile in picture
                for y in range(grid)
                for x in range(grid)
            ]
            for picture in pixels
        ]
    )


@pytest.mark.parametrize("canvas", CANVASES)
def test_all_ink_and_what_lies_beside_it_stays_and_each_patch_is_counted_once(canvas):
    pixels = pages(canvas)
    kept = keep(pixels, canvas, SIZE, np.random.default_rng(0))
    inked, num_patches = dark(pixels), pixels.shape[1] * (SIDE // SIZE) ** 2
    assert kept.patches.shape[1] < num_patches / 2
    torch.testing.assert_close(kept.log_counts.exp().sum(1), torch.full((2,), float(num_patches)))
    for picture in range(2):
        patches = kept.patches[picture].tolist()
        assert patches == sorted({*patches})
        assert {*np.flatnonzero(inked[picture]).tolist()} <= {*patches}
        of_ink = [
            count
            for patch, count in zip(patches, kept.log_counts[picture].tolist(), strict=True)
            if inked[picture, patch]
        ]
        assert set(of_ink) == {0.0}


def test_beside_ink_is_across_the_border_of_a_tile_too():
    pixels = torch.full((1, 2, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    grid = SIDE // SIZE
    pixels[0, 0, :, : SIZE // 2, -SIZE:] = 0
    kept = keep(pixels, (1, 2), SIZE, np.random.default_rng(0))
    counts = dict(zip(kept.patches[0].tolist(), kept.log_counts[0].tolist(), strict=True))
    beside = {grid - 2, 2 * grid - 1, grid * grid}
    assert {patch for patch, count in counts.items() if count == 0} == {grid - 1} | beside


def test_of_pictures_full_of_ink_as_many_patches_stay_as_there_is_room_for():
    draw = np.random.default_rng(0)
    pixels = torch.cat(
        [pages((1, 1), seed) for seed in range(3)]
        + [torch.from_numpy(draw.integers(0, 255, (1, 1, 3, SIDE, SIDE))).byte()]
    )
    kept = keep(pixels, (1, 1), SIZE, draw)
    assert kept.patches.shape[1] < 50
    torch.testing.assert_close(kept.log_counts.exp().sum(1), torch.full((7,), 100.0))
    assert kept.log_counts[-1].exp().allclose(torch.tensor(100 / kept.patches.shape[1]))


@pytest.mark.parametrize("canvas", CANVASES)
def test_with_all_patches_kept_features_are_those_of_the_encoder(canvas):
    reader, pixels = reader_on(canvas), normalise(pages(canvas))
    with torch.no_grad():
        expected = reader.model.encoder(pixels, [canvas] * 2)
        everything = Kept(
            *(
                part.expand(2, -1)
                for part in (torch.arange(expected[0, :, 1:, 0].numel()), torch.zeros(expected[0, :, 1:, 0].numel()))
            )
        )
        for kept in (None, everything):
            found = encode_rows(reader.model.encoder, pixels, canvas, kept)
            tiles = canvas[0] * canvas[1]
            torch.testing.assert_close(found[:, :tiles], expected[:, :, 0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found[:, tiles:], expected[:, :, 1:].flatten(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("canvas", CANVASES)
def test_where_blank_patches_are_alike_one_stands_for_many_exactly(canvas):
    """Without positions all blank patches are equal rows, and so the features of those that stay are the same."""
    reader = reader_on(canvas)
    encoder, pixels = reader.model.encoder, pages(canvas)
    with torch.no_grad():
        encoder.patch_position.embedding.zero_()
        encoder.patch_position.table.zero_()
        kept = keep(pixels, canvas, SIZE, np.random.default_rng(0))
        whole = encoder(normalise(pixels), [canvas] * 2)[:, :, 1:].flatten(1, 2)
        tiles = canvas[0] * canvas[1]
        found = encode_rows(encoder, normalise(pixels), canvas, kept)[:, tiles:]
        expected = whole[torch.arange(2)[:, None], kept.patches]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        unweighted = kept._replace(log_counts=torch.zeros_like(kept.log_counts))
        assert (encode_rows(encoder, normalise(pixels), canvas, unweighted)[:, tiles:] - expected).abs().max() > 0.05


@pytest.mark.parametrize("share_sheets", [0.0, 1.0])
def test_what_is_told_of_patches_goes_with_them(share_sheets):
    diet = Diet(
        num_images=4,
        share_pages=0.25,
        num_questions=3,
        difficulty=(0.2, 0.2),
        share_sheets=share_sheets,
        share_several_series=0.5,
    )
    vision = preset("default").vision
    whole, thin = (
        ReaderData(vision, reader_tokenizer(), replace(diet, is_thinned=is_thinned), num_batches=4, seed=3)[0]
        for is_thinned in (False, True)
    )
    kept = thin.kept.patches
    assert torch.equal(whole.pixels, thin.pixels)
    assert whole.kept is None
    rows = torch.arange(len(kept))[:, None]
    assert torch.equal(thin.characters, whole.characters[rows, kept])
    assert (thin.characters > 0).sum() == (whole.characters > 0).sum() > 100
    for part, of_all in zip(thin.links, whole.links, strict=True):
        assert torch.equal(part, of_all[rows, kept])
    assert thin.groups
    for group, of_all in zip(thin.groups, whole.groups, strict=True):
        assert torch.equal(group.ids, of_all.ids)
        assert group.places.sum() == of_all.places.sum() > 0
        for row, picture in enumerate(group.image_index.tolist()):
            for number in group.pointers[row].unique().tolist():
                assert torch.equal(group.places[number], of_all.places[number][kept[picture]])


def two_charts(share_sheets: float) -> tuple[ReaderBatch, Reader]:
    """Return charts of several series on one tile or a sheet, with questions, and a reader for them."""
    diet = Diet(
        num_images=2,
        share_pages=0.0,
        num_questions=3,
        difficulty=(0.2, 0.2),
        share_sheets=share_sheets,
        share_several_series=1.0,
    )
    vision = preset("default").vision
    batch = ReaderData(vision, reader_tokenizer(), diet, num_batches=4, seed=3)[0]
    return batch, reader_on(batch.canvas, vision)


@pytest.mark.parametrize("share_sheets", [0.0, 1.0])
def test_losses_and_gradients_of_all_patches_kept_are_those_of_none_left_out(share_sheets):
    batch, reader = two_charts(share_sheets)
    everything = torch.arange(batch.characters.shape[1]).expand(len(batch.pixels), -1)
    found = []
    for each in (batch, thinned(batch, Kept(everything, torch.zeros(everything.shape)))):
        reader.zero_grad()
        losses = reader(each)
        sum(losses).backward()
        found.append((torch.stack(losses).detach(), reader.model.projector.weight.grad.clone()))
    assert (found[0][0] != 0).sum() >= 7
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share_sheets", [0.0, 1.0])
def test_losses_are_the_same_where_blank_patches_stand_there_thrice_and_count_a_third(share_sheets):
    batch, reader = two_charts(share_sheets)
    inked = keep(batch.pixels, batch.canvas, SIZE, np.random.default_rng(0))
    blank = torch.ones(batch.characters.shape[:2], dtype=torch.bool)
    blank[torch.arange(len(blank))[:, None], inked.patches] = False
    few = int(blank.sum(1).min())
    again = torch.stack([row.nonzero()[:few, 0] for row in blank])
    everything = torch.arange(blank.shape[1]).expand(len(blank), -1)
    patches = torch.cat([everything, again, again], 1)
    counts = torch.zeros(everything.shape).scatter(1, again, -math.log(3))
    counts = torch.cat([counts, *[torch.full(again.shape, -math.log(3))] * 2], 1)
    with torch.no_grad():
        once = torch.stack(reader(batch))
        thrice = torch.stack(reader(thinned(batch, Kept(patches, counts))))
        unweighted = torch.stack(reader(thinned(batch, Kept(patches, torch.zeros(counts.shape)))))
    moved = set()
    for name, one, three, other in zip(Losses._fields, once, thrice, unweighted, strict=True):
        # Of characters the mean over all patches is asked, and blank ones count.
        if name != "characters":
            torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-4, msg=name)
            moved |= {name} if (other - one).abs() > 1e-3 else set()
    assert moved >= {"links", "partners", "pointers"}
