"""Stretched and enlarged charts: everything lies where it is seen."""

import math

import numpy as np
import pytest

from vlm.training.synthetic.boxes import Strip, TurnedBox, characters_in
from vlm.training.synthetic.charts import ask, draw_chart
from vlm.training.synthetic.stretch import stretched


@pytest.fixture(scope="module")
def pairs():
    """Charts and what they are when stretched, with turned labels among them."""
    charts = [
        draw_chart(np.random.default_rng(seed), (256, 320), several_series=seed % 3 == 0, wide=seed % 2 == 0)
        for seed in range(40)
    ]
    sizes = ((256, 256), (256, 400), (384, 480))
    return [(chart, stretched(chart, sizes[seed % 3])) for seed, chart in enumerate(charts)]


def _factors(chart, wide):
    return wide.image.width / chart.image.width, wide.image.height / chart.image.height


def test_characters_move_across_and_down_with_the_picture(pairs):
    for chart, wide in pairs:
        across, down = _factors(chart, wide)
        for before, after in zip(chart.characters, wide.characters, strict=True):
            assert after.char == before.char
            assert (after.x, after.y) == pytest.approx((before.x * across, before.y * down))
    assert {round(_factors(*pair)[1], 2) for pair in pairs} == {1.0, 1.5}


def test_every_character_of_a_stretched_chart_stands_on_ink(pairs):
    inked = []
    for _, wide in pairs:
        pixels = np.asarray(wide.image.convert("L"), dtype=int)
        for _, x, y in wide.characters:
            part = pixels[max(0, int(y) - 5) : int(y) + 6, max(0, int(x) - 5) : int(x) + 6]
            inked.append(np.ptp(part) > 30)
    assert np.mean(inked) > 0.99


def test_boxes_hold_the_characters_that_they_held(pairs):
    for chart, wide in pairs:
        boxes, moved = ([chart.title_box] if chart.title_box else []), ([wide.title_box] if wide.title_box else [])
        for mark, after in zip(chart.marks, wide.marks, strict=True):
            boxes += [mark.label_box, mark.value_box, *([mark.series_box] if mark.series_box else [])]
            moved += [after.label_box, after.value_box, *([after.series_box] if after.series_box else [])]
        for box, after in zip(boxes, moved, strict=True):
            held, holds = (
                [index for index, each in enumerate(part.characters) if each in inside]
                for part, inside in (
                    (chart, characters_in(chart.characters, box)),
                    (wide, characters_in(wide.characters, after)),
                )
            )
            assert held == holds
    assert any(isinstance(mark.label_box, TurnedBox) for chart, _ in pairs for mark in chart.marks)


def test_questions_about_a_stretched_chart_are_the_same_with_their_evidence_moved(pairs):
    for seed, (chart, wide) in enumerate(pairs):
        across, down = _factors(chart, wide)
        asked, again = (ask(np.random.default_rng(seed), each, 6, wide=True) for each in (chart, wide))
        for question, same in zip(asked, again, strict=True):
            assert (question.question, question.answer) == (same.question, same.answer)
            for box, moved in zip(question.copy_boxes, same.copy_boxes, strict=True):
                if not isinstance(box, TurnedBox):
                    assert moved == pytest.approx((box[0] * across, box[1] * down, box[2] * across, box[3] * down))


def test_the_middle_of_turned_text_is_stretched_with_it():
    box = TurnedBox(Strip(10.0, 80.0, math.radians(40), 50.0, 6.0))
    chart = draw_chart(np.random.default_rng(0), (224, 224))
    wide = stretched(type(chart)(**{**vars(chart), "title_box": box}), (672, 448))
    for along in (0.0, 0.5, 1.0):
        x, y = box.strip.at(along * box.strip.length)
        strip = wide.title_box.strip
        assert strip.at(along * strip.length) == pytest.approx((2 * x, 3 * y))
