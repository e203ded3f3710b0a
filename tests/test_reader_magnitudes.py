"""How large a value is among those of its chart: what patches are asked to tell, and what a wrong answer costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlm.config import preset
from vlm.training.reader.model import Reader, _magnitude_loss
from vlm.training.reader.targets import MAX_MAGNITUDE, no_links, patch_links
from vlm.training.reader.wires import SHADE_LOUDNESS, magnitude_code, magnitude_dims, shade_dims
from vlm.training.synthetic.charts import draw_chart, patch_mask

PATCH, GRID = 16, (16, 16)


@pytest.fixture(scope="module")
def charts():
    drawn = [draw_chart(np.random.default_rng(seed), 256, several_series=seed % 3 == 0) for seed in range(24)]
    return [chart for chart in drawn if chart.complete]


def boxes_of(chart) -> set:
    return {box for mark in chart.marks for box in (mark.label_box, mark.value_box)}


def test_a_patch_tells_where_its_value_lies_between_the_smallest_and_the_largest(charts):
    checked = 0
    for chart in charts:
        magnitude = patch_links(chart, PATCH, GRID).magnitude
        numbers = [mark.number for mark in chart.marks]
        lowest, highest = min(numbers), max(numbers)
        printed = [patch_mask(chart.characters, [box], PATCH, GRID) for box in boxes_of(chart)]
        # A patch of 16 pixels may hold parts of two texts.
        crowded = np.sum(printed, axis=0) > 1
        for mark in chart.marks:
            of_value = patch_mask(chart.characters, [mark.value_box], PATCH, GRID)
            if (of_value & crowded).any():
                continue
            (told,) = {*magnitude[of_value].tolist()}
            checked += 1
            exact = 1 + (MAX_MAGNITUDE - 1) * (mark.number - lowest) / (highest - lowest)
            assert (told == 1) == (mark.number == lowest)
            assert (told == MAX_MAGNITUDE) == (mark.number == highest)
            assert abs(told - exact) <= 1
    assert checked > 40


def test_a_label_tells_it_only_where_it_has_but_one_value(charts):
    of_labels = set()
    for chart in charts:
        magnitude = patch_links(chart, PATCH, GRID).magnitude
        values = np.zeros(len(magnitude), dtype=bool)
        for mark in chart.marks:
            values |= patch_mask(chart.characters, [mark.value_box], PATCH, GRID)
        for mark in chart.marks:
            of_label = patch_mask(chart.characters, [mark.label_box], PATCH, GRID) & ~values
            if of_label.any():
                of_labels.add((mark.series_box is None, bool(magnitude[of_label].any())))
    assert of_labels == {(True, True), (False, False)}


def test_values_that_are_all_the_same_or_not_all_printed_tell_nothing(charts):
    chart = next(chart for chart in charts if len(chart.marks) > 2)
    same = replace(chart, marks=tuple(replace(mark, number=3.0) for mark in chart.marks))
    fewer = replace(chart, marks=chart.marks[1:])
    for other in (same, fewer):
        assert not patch_links(other, PATCH, GRID).magnitude.any()
    assert not no_links(GRID).magnitude.any()


def test_the_loss_of_magnitudes_is_that_of_their_codes():
    magnitudes, told = torch.zeros(1, 4, dtype=torch.int16), torch.randn(1, 4, 3)
    assert _magnitude_loss(told, magnitudes) == 0
    magnitudes[0, :3] = torch.tensor([1, MAX_MAGNITUDE, 501])
    told[0, :3] = SHADE_LOUDNESS * torch.tensor([[-1.0, 1, 0], [1, 0, 1], [0, 0, 0]])
    assert _magnitude_loss(told, magnitudes) < 1e-10
    told[0, :2] = told[0, [1, 0]]
    assert _magnitude_loss(told, magnitudes) > 1


def test_the_larger_of_two_values_has_the_larger_code_and_dims_of_its_own():
    assert (magnitude_code(torch.arange(1, MAX_MAGNITUDE + 1))[:, 0].diff() > 0).all()
    model = Reader(preset("default")).model
    assert magnitude_dims(model).start == shade_dims(model).stop
    assert magnitude_dims(model).stop <= model.config.decoder.width
