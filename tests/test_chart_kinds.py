"""The wider variety of drawn charts: every kind is as its marks, boxes and characters say."""

import math
import re
from random import Random

import numpy as np
import pytest

from vlm.training.synthetic import kinds
from vlm.training.synthetic.boxes import characters_in
from vlm.training.synthetic.canvas import Canvas, DoesNotFit
from vlm.training.synthetic.charts import ask, draw_chart, patch_mask
from vlm.training.synthetic.dates import draw_dates
from vlm.training.synthetic.fonts import load_face
from vlm.training.synthetic.renderer import render
from vlm.training.synthetic.style import draw_shape, draw_style
from vlm.training.synthetic.words import in_split

NUM_CHARTS = 7
SIZES = (256, 320, 480)


def draw(name, seed):
    """Return a chart of a kind and its style."""
    random = Random(f"{name} {seed}")
    while True:
        shape = draw_shape(random, SIZES[seed % len(SIZES)])
        try:
            spec = kinds.KINDS[name].contents(random, "train", 1.0, shape)
            spec, style = kinds.dress(random, name, spec, draw_style(random, spec, "train", shape, 1.0, ()))
            return render(spec, style, random), style
        except DoesNotFit:
            continue


@pytest.fixture(scope="module")
def charts():
    return [(name, *draw(name, seed)) for name in kinds.KINDS for seed in range(NUM_CHARTS)]


def bare(text):
    return float(re.sub(r"[^0-9.\-]", "", text))


def text_in(chart, box):
    return "".join(character.char for character in characters_in(chart.characters, box))


def tip(chart, mark, upright):
    """Return where the end of a bar, or a point, lies along the value axis, in pixels."""
    x0, y0, x1, y1 = mark.mark_box
    if chart.kind in ("line", "scatter"):
        return (y0 + y1) / 2
    if upright:
        return y0 if mark.number >= 0 else y1
    return x1 if mark.number >= 0 else x0


def farthest_from_a_line(numbers, places):
    """Return how many pixels the places lie off the straight line that fits them best."""
    line = np.polyfit(numbers, places, 1)
    return float(np.abs(np.polyval(line, numbers) - places).max())


def test_characters_and_boxes_lie_inside_the_picture(charts):
    for name, chart, _ in charts:
        width, height = chart.image.size
        assert all(0 < x < width and 0 < y < height for _, x, y in chart.characters), name
        for mark in chart.marks:
            for x0, y0, x1, y1 in (mark.label_box, mark.value_box, mark.mark_box):
                assert -1 <= x0 < x1 <= width + 1, (name, mark)
                assert -1 <= y0 < y1 <= height + 1, (name, mark)


def test_every_character_stands_on_ink(charts):
    for name, chart, _ in charts:
        pixels = np.asarray(chart.image.convert("L"), dtype=int)
        for char, x, y in chart.characters:
            left, top = max(round(x) - 4, 0), max(round(y) - 5, 0)
            around = pixels[top : round(y) + 7, left : round(x) + 5]
            assert around.max() - around.min() > 40, (name, char, x, y, chart.spec)


def test_boxes_hold_exactly_the_characters_of_their_text(charts):
    for name, chart, _ in charts:
        for mark in chart.marks:
            assert text_in(chart, mark.label_box) == mark.label.replace(" ", ""), name
            if chart.values_printed:
                assert text_in(chart, mark.value_box) == mark.value.replace(" ", ""), name
            if len(chart.spec.series_names) > 1:
                assert text_in(chart, mark.series_box) == mark.series.replace(" ", ""), name
        if chart.title_box:
            assert text_in(chart, chart.title_box) == chart.title.replace(" ", "")


def test_printed_values_are_the_numbers_of_the_table(charts):
    for _, chart, _ in charts:
        for mark in chart.marks:
            assert bare(mark.value) == pytest.approx(mark.number, abs=1e-9)


def test_every_mark_shows_its_colour(charts):
    for name, chart, style in charts:
        if name == "table" or style.aged or style.softened > 1 or style.scale != 1:
            continue
        pixels = np.asarray(chart.image, dtype=int)
        for mark in chart.marks:
            x0, y0, x1, y1 = (round(side) for side in mark.mark_box)
            # With its last row and column, which Pillow draws too: of the shortest bars the axis hides all others.
            inside = pixels[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1].reshape(-1, 3)
            assert np.abs(inside - mark.shade).max(axis=1).min() <= 3, (name, mark)


def test_where_not_all_marks_are_told_there_are_several_series(charts):
    """Or a count of them, or the highest, would be asked for."""
    for name, chart, _ in charts:
        assert chart.complete or len(chart.spec.series_names) > 1, name
        assert chart.marks


def test_questions_can_be_asked_of_every_kind(charts):
    for seed, (_, chart, _) in enumerate(charts):
        for question in ask(np.random.default_rng(seed), chart, 12):
            assert question.question
            assert question.answer


@pytest.mark.parametrize("name", ["turned labels", "signed", "log axis", "end names", "scatter"])
def test_the_tips_of_marks_lie_where_their_values_are_on_the_axis(charts, name):
    for kind, chart, style in charts:
        if kind != name or style.stacked:
            continue
        upright = chart.kind != "horizontal bar"
        numbers = [math.log10(mark.number) if style.log_axis else mark.number for mark in chart.marks]
        # Bars are at least a pixel long.
        assert farthest_from_a_line(numbers, [tip(chart, mark, upright) for mark in chart.marks]) < 1.5


def test_negative_and_positive_bars_part_at_one_line(charts):
    for name, chart, _ in charts:
        if name != "signed" or chart.kind == "line":
            continue
        side = 3 if chart.kind == "bar" else 0
        foots = [mark.mark_box[side if mark.number >= 0 else (side + 2) % 4] for mark in chart.marks]
        assert any(mark.number < 0 for mark in chart.marks)
        assert max(foots) - min(foots) < 1e-6


def test_parts_of_stacks_are_as_large_as_their_values(charts):
    for name, chart, style in charts:
        stacked = style.stacked or style.layout == "stacked rows"
        if name not in ("area", "survey rows") or not stacked:
            continue
        axis = 1 if chart.kind == "area" else 0
        sizes = [(mark.mark_box[axis + 2] - mark.mark_box[axis]) / mark.number for mark in chart.marks]
        assert max(sizes) == pytest.approx(min(sizes))


@pytest.mark.parametrize("degrees", [30, 45, 60, 90])
def test_turned_characters_are_where_their_ink_is(degrees):
    """An H is symmetric about the middle of its advance and of its height."""
    canvas = Canvas(160, 160, (255, 255, 255))
    box = canvas.turned_text("H  H", 110, 40, load_face("", 20.0), (0, 0, 0), degrees)
    ink = 255 - np.asarray(canvas.finish().convert("L"), dtype=float)
    assert [character.char for character in characters_in(canvas.characters, box)] == ["H", "H"]
    for _, x, y in canvas.characters:
        rows, cols = np.mgrid[0:160, 0:160] + 0.5
        near = ink * (np.hypot(rows - y, cols - x) < 12)
        assert (near * cols).sum() / near.sum() == pytest.approx(x, abs=1.0)
        assert (near * rows).sum() / near.sum() == pytest.approx(y, abs=1.0)


def test_turned_labels_side_by_side_keep_their_characters_apart():
    canvas, face = Canvas(300, 200, (255, 255, 255)), load_face("", 10.0)
    texts = ["Philadelphia", "Los Angeles", "San Diego"]
    boxes = [canvas.turned_text(text, 200 + 20 * i, 50, face, (0, 0, 0), 45) for i, text in enumerate(texts)]
    assert boxes[1][0] < boxes[0][2]  # the upright boxes overlap
    for text, box in zip(texts, boxes, strict=True):
        assert "".join(each.char for each in characters_in(canvas.characters, box)) == text.replace(" ", "")


def test_the_wider_variety_is_drawn_only_when_asked_for():
    drawn = {chart.kind for chart in (draw_chart(np.random.default_rng(seed)) for seed in range(40))}
    assert drawn <= {"bar", "horizontal bar", "line", "pie"}
    wide = {draw_chart(np.random.default_rng(seed), 256, wide=True).kind for seed in range(60)}
    assert wide == {"bar", "horizontal bar", "line", "pie", "area", "scatter", "table"}
    several = [draw_chart(np.random.default_rng(seed), 256, wide=True, several_series=True) for seed in range(15)]
    assert all(len(chart.spec.series_names) > 1 for chart in several)
    one, same = (draw_chart(np.random.default_rng(3), 300, wide=True) for _ in range(2))
    assert one.image.tobytes() == same.image.tobytes()


def test_held_out_words_and_numerals_are_disjoint_in_the_wider_variety():
    def vocabulary(split):
        seen = set()
        for seed in range(60):
            spec = draw_chart(np.random.default_rng(seed), 256, split=split, wide=True).spec
            texts = (spec.title, *spec.labels, *spec.series_names, *spec.notes, *(text for _, text in spec.headings))
            seen |= {word for word in re.split(r"[\W_]+", " ".join(texts).lower()) if len(word) > 2}
            # Numerals by themselves: a year of one split may be a value of the other.
            seen |= {f"#{digits}" for row in spec.printed for text in row if len(digits := re.sub(r"\D", "", text)) > 1}
        return seen

    shared = vocabulary("train") & vocabulary("held_out")
    assert shared <= {"of", "in", "by", "to", "the", "number", "rate", "market", "average", "price", "net"}


def test_dates_are_in_a_row_and_their_numerals_of_the_split():
    for seed in range(200):
        kind, labels = draw_dates(Random(seed), 3 + seed % 14)
        assert kind in ("month", "quarter", "day")
        assert len({*labels}) == len(labels)
        assert all(in_split(numeral, "train") for label in labels for numeral in re.findall(r"\b\d\d\b", label)), labels


def test_marks_are_called_what_they_are(charts):
    nouns = {(chart.kind, chart.mark_noun) for _, chart, _ in charts}
    assert nouns >= {("bar", "bar"), ("area", "point"), ("scatter", "point"), ("pie", "slice"), ("table", "row")}


def test_patch_masks_of_turned_labels_hold_their_own_characters_only():
    canvas, face = Canvas(300, 200, (255, 255, 255)), load_face("", 10.0)
    boxes = [
        canvas.turned_text(text, 150 + 40 * i, 50, face, (0, 0, 0), 45) for i, text in enumerate(("a" * 15, "b" * 15))
    ]
    masks = [patch_mask(canvas.characters, (box,), 8.0, (25, 38)) for box in boxes]
    assert masks[0].any()
    assert not (masks[0] & masks[1]).any()
