"""The drawn charts: what is said to be printed is printed, and the answers follow from the table."""

import itertools
import re
from random import Random

import numpy as np
import pytest

from vlm.training.synthetic.charts import Character, ask, draw_chart, patch_characters, patch_mask
from vlm.training.synthetic.questions import OTHER_KINDS
from vlm.training.synthetic.style import COLOURS, VARIED, _colours, colour_name
from vlm.training.synthetic.words import in_split, words

NUM_CHARTS = 150


@pytest.fixture(scope="module")
def charts():
    return [draw_chart(np.random.default_rng(seed), 256) for seed in range(NUM_CHARTS)]


@pytest.fixture(scope="module")
def asked(charts):
    return [(chart, q) for seed, chart in enumerate(charts) for q in ask(np.random.default_rng(seed), chart, 12)]


def contrast(chart, box):
    """Return the greatest difference of brightness among the pixels of `box`."""
    x0, y0, x1, y1 = (round(side) for side in box)
    pixels = np.asarray(chart.image.convert("L"), dtype=int)[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1]
    return int(pixels.max() - pixels.min())


def test_the_same_seed_gives_the_same_chart_and_questions():
    once, again = (draw_chart(np.random.default_rng(7), 256) for _ in range(2))
    assert once.image.tobytes() == again.image.tobytes()
    assert once.characters == again.characters
    assert ask(np.random.default_rng(1), once) == ask(np.random.default_rng(1), again)
    assert draw_chart(np.random.default_rng(8), 256).characters != once.characters


@pytest.mark.parametrize("image_size", [224, 256, 320])
@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_the_longest_side_is_the_image_size(image_size, split, difficulty):
    for seed in range(5):
        chart = draw_chart(np.random.default_rng(seed), image_size, split=split, difficulty=difficulty)
        assert max(chart.image.size) == image_size
        assert chart.image.mode == "RGB"


def test_characters_and_boxes_lie_inside_the_picture(charts):
    for chart in charts:
        width, height = chart.image.size
        assert all(0 < x < width and 0 < y < height for _, x, y in chart.characters)
        for mark in chart.marks:
            for x0, y0, x1, y1 in (mark.label_box, mark.value_box, mark.mark_box):
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height


def test_every_character_stands_on_ink(charts):
    for chart in charts:
        for char, x, y in chart.characters:
            assert contrast(chart, (x - 4, y - 5, x + 4, y + 7)) > 40, (char, x, y, chart.spec)


def test_boxes_hold_exactly_the_characters_of_their_text(charts):
    def read(chart, box):
        x0, y0, x1, y1 = box
        return "".join(char for char, x, y in chart.characters if x0 <= x <= x1 and y0 <= y <= y1)

    for chart in charts:
        for mark in chart.marks:
            assert read(chart, mark.label_box) == mark.label.replace(" ", "")
            if chart.values_printed:
                assert read(chart, mark.value_box) == mark.value.replace(" ", "")
        if chart.title_box:
            assert read(chart, chart.title_box) == chart.title.replace(" ", "")


def test_printed_values_are_the_numbers_of_the_table(charts):
    for chart in charts:
        for mark in chart.marks:
            assert float(re.sub(r"[^0-9.]", "", mark.value)) == pytest.approx(mark.number, abs=1e-9)


def oracle(chart, question):
    """Work the answer out of the printed table, reading the question's words again."""
    table = {label: value for rows in chart.series.values() for label, value in rows.items()}
    numbers = {label: float(re.sub(r"[^0-9.]", "", value)) for label, value in table.items()}
    words_of = " " + question.question.replace("?", " ").replace("\n", " ") + " "
    boxes = {mark.label_box: mark.label for mark in chart.marks}
    named = [boxes[box] for box in question.find_boxes if box in boxes]
    if question.kind in ("named_value", "series_value", "comparison", "difference", "colour"):
        assert all(label in words_of for label in named)
    if question.kind == "comparison":
        above = re.search(r" (greater|higher|larger) than ", words_of) is not None
        return "Yes" if (numbers[named[0]] > numbers[named[1]]) == above else "No"
    best = {"highest": max, "largest_value": max, "lowest": min, "smallest_value": min}
    if question.kind in ("highest", "lowest"):
        return best[question.kind](numbers, key=numbers.get)
    if question.kind in ("largest_value", "smallest_value"):
        return re.sub(r"[^0-9.]", "", table[best[question.kind](numbers, key=numbers.get)])
    if question.kind == "difference":
        return f"{abs(numbers[named[0]] - numbers[named[1]]):.0f}"
    if question.kind == "named_value":
        return re.sub(r"[^0-9.]", "", table[named[0]])
    if question.kind == "series_value":
        series = next(name for name in chart.series if f" {name} " in words_of)
        return re.sub(r"[^0-9.]", "", chart.series[series][named[0]])
    if question.kind == "reverse":
        (found,) = {mark.label for mark in chart.marks if mark.value_box in question.find_boxes}
        asked_for = re.sub(r"[^0-9.]", "", words_of.split()[-1] if " " not in table[found] else words_of)
        return found if asked_for == re.sub(r"[^0-9.]", "", table[found]) or len(chart.series) > 1 else "another"
    return {"count": str(len(table)), "title": chart.title}.get(question.kind, question.answer)


def test_answers_follow_from_the_table(asked):
    for chart, question in asked:
        assert question.answer == oracle(chart, question), question
    assert {question.kind for _, question in asked} == {*OTHER_KINDS, "named_value", "series_value"}


def test_reverse_questions_name_a_value_that_stands_once(asked):
    for chart, question in asked:
        if question.kind == "reverse":
            found = [mark for mark in chart.marks if mark.value_box == question.find_boxes[0]]
            assert [mark.label for mark in found] == [question.answer]
            assert sum(mark.value == found[0].value for mark in chart.marks) == 1


def test_answers_are_copied_from_their_copy_boxes(asked):
    for chart, question in asked:
        if question.kind in ("named_value", "series_value", "reverse", "highest", "lowest", "largest_value", "title"):
            ((x0, y0, x1, y1),) = question.copy_boxes
            text = "".join(char for char, x, y in chart.characters if x0 <= x <= x1 and y0 <= y <= y1)
            assert question.answer.replace(" ", "") in {text, re.sub(r"[^0-9.]", "", text)}


def test_yes_and_no_are_balanced_and_named_values_lead(charts):
    questions = [q for seed, chart in enumerate(charts) for q in ask(np.random.default_rng(seed + 1), chart, 6)]
    answers = [question.answer for question in questions if question.kind == "comparison"]
    assert 0.3 < answers.count("Yes") / len(answers) < 0.7
    assert sum(question.kind in ("named_value", "series_value") for question in questions) > 0.45 * len(questions)


def test_a_varied_colour_keeps_its_name():
    """Or the answer would name another colour than people see."""
    for name, shades in COLOURS["train"].items():
        for shade, steps in itertools.product(shades, itertools.product((-VARIED, 0, VARIED), repeat=3)):
            varied = tuple(min(max(part + step, 0), 255) for part, step in zip(shade, steps, strict=True))
            assert colour_name(varied) == name


def test_held_out_words_and_numerals_are_disjoint():
    def vocabulary(split):
        seen = set()
        for seed in range(60):
            spec = draw_chart(np.random.default_rng(seed), 256, split=split).spec
            texts = [*spec.labels, *spec.series_names, *(text for row in spec.printed for text in row)]
            seen |= {text for text in texts if len(re.sub(r"\W", "", text)) > 2}
        return seen

    assert not vocabulary("train") & vocabulary("held_out")
    for kind in ("country", "place", "product", "sector", "person", "group", "company", "measure", "counted"):
        assert not set(words(kind, "train")) & set(words(kind, "held_out"))
        assert len(words(kind, "held_out")) >= 2
    assert in_split("brazil", "train") != in_split("Brazil", "held_out")


def test_patch_characters_on_a_case_made_by_hand():
    characters = [Character(*row) for row in [("b", 9, 4), ("a", 3, 4), ("c", 17, 4), ("d", 5, 14), ("e", 40, 40)]]
    codes = patch_characters(characters, 16, (3, 3), max_per_patch=3)
    expected = np.zeros((3, 3, 3), dtype=np.uint8)
    expected[0, 0] = [ord("a"), ord("b"), ord("d")]
    expected[0, 1, 0] = ord("c")
    expected[2, 2, 0] = ord("e")
    np.testing.assert_array_equal(codes, expected)
    assert patch_characters(characters, 16, (3, 3), max_per_patch=2)[0, 0].tolist() == [ord("a"), ord("b")]


def test_patch_mask_marks_the_patches_of_the_characters_or_of_an_empty_box():
    characters = [Character("a", 14, 15.5), Character("b", 20, 15.5)]
    mask = patch_mask(characters, [(10, 10, 24, 20)], 16, (2, 3)).reshape(2, 3)
    assert mask.tolist() == [[True, True, False], [False, False, False]]
    bar = patch_mask(characters, [(33, 4, 47, 30)], 16, (2, 3)).reshape(2, 3)
    assert bar.tolist() == [[False, False, True], [False, False, True]]


def test_a_size_too_small_for_any_chart_is_refused():
    with pytest.raises(ValueError, match=r"no chart fits in 40 pixels after \d+ tries; expected at least"):
        draw_chart(np.random.default_rng(0), 40)


def test_there_is_a_colour_for_each_label_however_many():
    for number in (1, 3, 9, 19, 40):
        colours = _colours(Random(number), "train", number)
        assert len(colours) == max(number, 3)
        assert len({*colours[:9]}) == len(colours[:9])
