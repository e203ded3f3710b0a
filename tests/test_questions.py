"""People's wordings about drawn charts: every answer is worked out again from the table and the question's words."""

import re
import statistics
from collections import Counter

import numpy as np
import pytest

from vlm.training.synthetic.charts import ask, ask_how_many, draw_chart
from vlm.training.synthetic.questions import OTHER_KINDS
from vlm.training.synthetic.questions.question import number_text
from vlm.training.synthetic.questions.tables import MAX_LENGTH
from vlm.training.synthetic.words import in_split

NUM_CHARTS = 110
ABOVE = r"\b(above|over|greater than|more than|higher than|larger than)\b"


@pytest.fixture(scope="module")
def charts():
    return [
        draw_chart(
            np.random.default_rng(seed), 300, several_series=seed % 3 == 0, split=("train", "held_out")[seed % 2]
        )
        for seed in range(NUM_CHARTS)
    ]


@pytest.fixture(scope="module")
def asked(charts):
    return [
        (chart, question)
        for seed, chart in enumerate(charts)
        for question in ask(np.random.default_rng(seed), chart, 30, wide=True)
    ]


def bare(value):
    return re.sub(r"[^0-9.\-]", "", value)


def numbers_of(chart):
    """Return series to label to number, as printed."""
    return {name: {label: float(bare(value)) for label, value in row.items()} for name, row in chart.series.items()}


def named(text, names):
    """Return those of `names` that `text` names, in its order; of two that overlap the longer one."""
    found = {}
    for name in sorted(names, key=len, reverse=True):
        # A hasty typist begins in small letters.
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text) if name else ():
            if not any(start <= match.start() < end for start, end in found):
                found[match.span()] = name
    return [name for _, name in sorted(found.items())]


def two_named(chart, text):
    """Return the numbers of the two that a calculation names: two labels, or two series at one label."""
    table = numbers_of(chart)
    if len(table) == 1:
        (row,) = table.values()
        return [row[label] for label in named(text, row)]
    (label,) = named(text, next(iter(table.values())))
    return [table[name][label] for name in named(text, table)]


def row_named(chart, text):
    table = numbers_of(chart)
    return next(iter(table.values())) if len(table) == 1 else table[named(text, table)[0]]


def limit_in(text):
    return float(
        re.findall(r"than (-?[\d.]+)|(?:above|over|below|under) (-?[\d.]+)", text)[-1][0]
        or re.findall(r"(?:above|over|below|under) (-?[\d.]+)", text)[-1]
    )


def yes(is_so):
    return "Yes" if is_so else "No"


def says_above(text):
    return re.search(ABOVE, text) is not None


def is_high(text):
    return re.search(r"highest|largest|biggest|tallest|longest|peak|maximum", text) is not None


def oracle_two(chart, text, kind):
    one, other = two_named(chart, text)
    return {
        "sum": one + other,
        "difference": abs(one - other),
        "average": (one + other) / 2,
        "ratio": one / other if other else None,
        "change": abs(one - other),
    }[kind]


def oracle_number(chart, text, kind):
    """Return the number that the question asks for."""
    if kind in ("sum", "difference", "average", "ratio", "change"):
        return oracle_two(chart, text, kind)
    row = list(row_named(chart, text).values())
    return {
        "sum_of_all": sum(row),
        "average_of_all": sum(row) / len(row),
        "median_of_all": statistics.median(row),
        "difference_of_extremes": max(row) - min(row),
        "sum_of_extremes": max(row) + min(row),
        "second_value": sorted(row)[-2 if is_high(text) else 1],
        "series_extreme_value": (max if is_high(text) else min)(row),
    }[kind]


NUMBER_KINDS = (
    "sum",
    "difference",
    "average",
    "ratio",
    "change",
    "sum_of_all",
    "average_of_all",
    "median_of_all",
    "difference_of_extremes",
    "sum_of_extremes",
    "second_value",
    "series_extreme_value",
)


def test_calculations_are_right(asked):
    seen = Counter()
    for chart, question in asked:
        if question.kind in NUMBER_KINDS:
            expected = oracle_number(chart, question.question, question.kind)
            # Ratios and averages are rounded.
            assert float(question.answer) == pytest.approx(expected, rel=0.006, abs=0.0051), question
            assert not question.worked_out or re.fullmatch(r"-?\d+(\.\d*[1-9])?", question.answer)
            seen[question.kind] += 1
    assert min(seen[kind] for kind in NUMBER_KINDS) > 2, seen


def test_yes_and_no_follow_from_the_table(asked):
    seen = Counter()
    for chart, question in asked:
        text, table = question.question, numbers_of(chart)
        first = next(iter(table.values()))
        above = says_above(text)
        if question.kind == "sum_comparison":
            one, other, third = (first[label] for label in named(text, first))
            expected = yes((one + other > third) == above)
        elif question.kind == "smallest_two":
            low, second, *_, high = sorted(first.values())
            expected = yes((low + second > high) == above)
        elif question.kind == "average_beyond":
            total = sum(first.values()) / (1 if "total" in text else len(first))
            expected = yes((total > limit_in(text)) == above)
        elif question.kind == "beyond":
            names = named(text, table)
            row = table[names[0]] if names else first
            expected = yes((row[named(text, row)[0]] > limit_in(text)) == above)
        elif question.kind == "is_extreme":
            best = (max if is_high(text) else min)(first, key=first.get)
            expected = yes(named(text, first)[0] == best)
        elif question.kind == "series_comparison":
            one, other = two_named(chart, text)
            expected = yes((one > other) == above)
        elif question.kind == "rose":
            one, other = (first[label] for label in named(text, first))
            expected = yes((other > one) == bool(re.search("increase|rise|grow", text)))
        else:
            continue
        assert question.answer == expected, (text, chart.series)
        seen[question.kind, question.answer] += 1
    answers = Counter()
    for (_, answer), number in seen.items():
        answers[answer] += number
    assert 0.4 < answers["Yes"] / answers.total() < 0.6
    assert {kind for kind, _ in seen} == {
        "sum_comparison", "smallest_two", "average_beyond", "beyond", "is_extreme", "series_comparison", "rose",
    }  # fmt: skip


def test_names_asked_for_are_those_of_the_table(asked):
    seen = Counter()
    for chart, question in asked:
        text, table = question.question, numbers_of(chart)
        everywhere = {(name, label): value for name, row in table.items() for label, value in row.items()}
        best = max if is_high(text) else min
        if question.kind in ("extreme_mark", "extreme_mark_value", "peak"):
            name, label = best(everywhere, key=everywhere.get)
            expected = bare(chart.series[name][label]) if question.kind == "extreme_mark_value" else label
        elif question.kind == "second":
            row = table[""]
            expected = sorted(row, key=row.get)[-2 if is_high(text) else 1]
        elif question.kind == "series_extreme":
            row = row_named(chart, text)
            expected = best(row, key=row.get)
        elif question.kind == "extreme_series":
            (label,) = named(text, next(iter(table.values())))
            expected = best(table, key=lambda name, table=table, label=label: table[name][label])
        elif question.kind == "trend":
            row = dict(sorted(table[""].items()) if all(label.isdigit() for label in table[""]) else table[""])
            one, other = named(text, row) or (next(iter(row)), list(row)[-1])
            up = row[other] > row[one]
            expected = ("Increas" if up else "Decreas") + ("e" if named(text, row) else "ing")
        else:
            continue
        assert question.answer == expected, (text, chart.series)
        seen[question.kind] += 1
    assert len(seen) == 7
    assert min(seen.values()) > 2


def test_counts_are_right(asked):
    seen = Counter()
    for chart, question in asked:
        text, table = question.question, numbers_of(chart)
        if question.kind == "count_labels":
            expected = len(next(iter(table.values())))
        elif question.kind == "count_series":
            expected = len(table) if len(table) > 1 else len({mark.shade for mark in chart.marks})
        elif question.kind == "count_beyond":
            limit = limit_in(text)
            values = row_named(chart, text).values()
            assert limit not in values
            expected = sum((value > limit) == says_above(text) for value in values)
        else:
            continue
        assert question.answer == str(expected), (text, chart.series)
        seen[question.kind] += 1
    assert min(seen.values()) > 10
    assert len(seen) == 3


def test_a_colour_tells_one_series_or_one_mark(asked):
    seen = Counter()
    for chart, question in asked:
        text = question.question
        if question.kind == "series_colour":
            (name,) = named(text, chart.series)
            assert {mark.colour for mark in chart.marks if mark.series == name} == {question.answer}
        elif question.kind in ("coloured_value", "coloured_name"):
            (colour,) = named(text, {mark.colour for mark in chart.marks})
            told = [mark for mark in chart.marks if mark.colour == colour]
            several = len(chart.series) > 1
            assert len({mark.series if several else mark.label for mark in told}) == 1
            if question.kind == "coloured_name":
                assert question.answer == (told[0].series if several else told[0].label)
            else:
                (mark,) = [mark for mark in told if not several or mark.label in named(text, chart.spec.labels)]
                assert question.answer == bare(mark.value)
        else:
            continue
        seen[question.kind] += 1
    assert min(seen.values()) > 10
    assert len(seen) == 3


def test_the_bar_at_an_end_is_there(asked):
    seen = Counter()
    for chart, question in asked:
        if not question.kind.startswith("placed"):
            continue
        (word,) = re.findall(r"leftmost|first|rightmost|last|topmost|uppermost|top|bottom|lowermost", question.question)
        axis = 1 if word in ("top", "topmost", "uppermost", "bottom", "lowermost") else 0
        assert (axis == 1) == (chart.kind == "horizontal bar")
        ordered = sorted(chart.marks, key=lambda mark, axis=axis: mark.mark_box[axis])
        mark = ordered[-1 if word in ("rightmost", "last", "bottom", "lowermost") else 0]
        assert question.answer == (bare(mark.value) if question.kind == "placed_value" else mark.label)
        seen[question.kind, axis] += 1
    assert len(seen) == 4


def test_a_table_reads_back_as_the_table_of_the_chart(asked):
    checked = Counter()
    for chart, question in asked:
        if question.kind == "table":
            head, *rows = (line.split(" | ") for line in question.answer.split("\n"))
            names = list(chart.series) if len(chart.series) > 1 else [""]
            assert head[1:] == (names if len(names) > 1 else ["Value"])
            table = {name: {row[0]: row[place] for row in rows} for place, name in enumerate(names, 1)}
            assert table == {
                name: {label: bare(value) for label, value in row.items()} for name, row in chart.series.items()
            }
            assert len(question.answer) <= MAX_LENGTH
            checked[len(names) > 1] += 1
    assert min(checked.values()) > 5
    assert len(checked) == 2


def test_a_caption_of_several_series_names_them_and_the_ends(asked):
    captions = [(chart, question.answer) for chart, question in asked if question.kind == "series_caption"]
    assert len(captions) > 5
    for chart, caption in captions:
        low, high = (choose(chart.marks, key=lambda mark: mark.number) for choose in (min, max))
        assert caption.endswith(
            f"from {low.series} in {low.label} ({low.value}) to {high.series} in {high.label} ({high.value})."
        )
        assert all(name in caption for name in chart.series)
        assert chart.title in caption


SHADED = re.compile(r"(?:(dark|light|navy) )?\b(blue|black|grey|red|orange|green|purple|yellow|brown)\b")


def test_what_is_told_by_its_shade_is_of_that_shade_alone(asked):
    kinds = Counter()
    for chart, question in asked:
        if not question.kind.startswith("shade"):
            continue
        kinds[question.kind] += 1
        depth, name = SHADED.search(question.question).groups()
        several = len(chart.series) > 1
        marks = [mark for mark in chart.marks if mark.colour == name]
        assert len({mark.series if several else mark.label for mark in marks}) == 1, question.question
        lightness = (max(marks[0].shade) + min(marks[0].shade)) / 2 / 255
        assert lightness >= 0.55 if depth == "light" else lightness <= 0.42 if depth else True
        numbers = [mark.number for mark in marks]
        if question.kind == "shade_name":
            assert question.answer == (marks[0].series if several else marks[0].label)
        elif question.kind == "shade_value":
            (mark,) = [
                mark for mark in marks if not several or mark.label in named(question.question, chart.spec.labels)
            ]
            assert float(question.answer) == mark.number
        elif question.kind == "shade_extreme":
            assert float(question.answer) == (max if is_high(question.question) else min)(numbers)
        else:
            high, low = max(numbers), min(numbers)
            assert float(question.answer) == pytest.approx(high + low if "sum" in question.question else high - low)
    assert kinds.keys() == {"shade_name", "shade_value", "shade_extreme", "shade_calculation"}


def test_the_colour_of_all_is_asked_for_where_there_is_one(asked):
    alike = [(chart, question.answer) for chart, question in asked if question.kind == "only_colour"]
    assert alike
    for chart, answer in alike:
        assert {mark.colour for mark in chart.marks} == {answer}


def test_held_out_charts_are_asked_nothing_that_was_added_since_they_were_drawn_first(asked):
    for chart, question in asked:
        assert chart.spec.split == "train" or question.kind not in ("only_colour", "shade_calculation")
        assert chart.spec.split == "train" or not question.kind.startswith("shade")


def test_how_many_there_are_is_asked_of_what_can_be_counted(charts):
    kinds = Counter()
    for seed, chart in enumerate(charts):
        for question in ask_how_many(np.random.default_rng(seed), chart):
            kinds[question.kind] += 1
            number = len({mark.label for mark in chart.marks})
            assert str(number) in re.findall(
                r"\d+", question.answer.removeprefix(f'A {chart.kind} chart titled "{chart.title}"')
            )
    assert kinds.keys() == {"count", "count_labels", "caption"}


def test_limits_belong_to_the_split(asked):
    for chart, question in asked:
        if question.kind in ("count_beyond", "beyond", "average_beyond"):
            limit = re.findall(r"-?\d[\d.]*\d|\d", question.question)[-1]
            assert in_split(re.sub(r"\D", "", limit), chart.spec.split), question.question


def test_nothing_is_asked_that_cannot_be_told():
    """Which bar of a stack is the largest; which of two heights without values, hardly apart, is the greater."""
    seen = Counter()
    for seed in range(160):
        chart = draw_chart(np.random.default_rng(seed), 320, wide=True)
        largest = max(abs(number) for row in chart.spec.numbers for number in row)
        numbers = sorted(mark.number for mark in chart.marks)
        if len(chart.spec.series_names) == 1:
            assert len({*numbers}) == len(numbers), chart.spec
        for question in ask(np.random.default_rng(seed), chart, 12, wide=True):
            if question.kind.startswith("extreme_mark"):
                assert not chart.stacked
                assert not re.search("tallest|longest|shortest", question.question) or "bar" in chart.kind
            if question.kind in ("extreme_mark", "peak") and not chart.values_printed:
                gap = numbers[-1] - numbers[-2] if is_high(question.question) else numbers[1] - numbers[0]
                assert gap > 0.02 * largest
            if chart.kind == "scatter" and question.kind in ("highest", "lowest", "second", "comparison", "is_extreme"):
                # Higher in which of two measures must be said.
                assert chart.spec.topic in question.question
            if question.kind in ("count_labels", "count_series") and "groups" in question.question:
                assert (chart.spec.label_kind == "group") + (len(chart.series) > 1) < 2
            seen[question.kind, chart.kind] += 1
    assert seen["comparison", "scatter"] + seen["highest", "scatter"] > 0
    assert seen["extreme_mark", "bar"] > 2


def test_nothing_is_spelt_from_what_is_worked_out(asked):
    copied = {"extreme_mark", "peak", "second", "coloured_name", "placed_name", "series_extreme", "extreme_series"}
    for chart, question in asked:
        if question.kind in copied:
            ((x0, y0, x1, y1),) = question.copy_boxes
            text = "".join(char for char, x, y in chart.characters if x0 <= x <= x1 and y0 <= y <= y1)
            assert text == question.answer.replace(" ", "")
        elif question.kind in NUMBER_KINDS and question.kind not in ("second_value", "series_extreme_value"):
            assert question.worked_out or question.kind in OTHER_KINDS


def test_half_the_wide_questions_are_look_ups_and_the_rest_is_varied(charts):
    kinds = Counter(
        question.kind
        for seed, chart in enumerate(charts)
        for question in ask(np.random.default_rng(seed), chart, 6, wide=True)
    )
    share = (kinds["named_value"] + kinds["series_value"]) / kinds.total()
    assert 0.4 < share < 0.6
    assert len(kinds) > 35


def test_wide_questions_are_a_function_of_the_seed(charts):
    once, again = (ask(np.random.default_rng(5), charts[0], 8, wide=True, share_declined=0.2) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("number", "decimals", "text"),
    [(-1e-17, 1, "0"), (12.50, 2, "12.5"), (1200, 0, "1200"), (0.5, 3, "0.5"), (-3.0, 1, "-3")],
)
def test_numbers_are_written_without_zeros_at_the_end(number, decimals, text):
    assert number_text(number, decimals) == text
