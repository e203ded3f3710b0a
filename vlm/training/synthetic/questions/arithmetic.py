"""Sums, differences, ratios, averages and medians, answered with the number alone."""

import statistics
from collections.abc import Sequence
from random import Random

from vlm.training.synthetic.questions.question import (
    Question,
    has_several_series,
    label_words,
    mark_noun,
    number_text,
    of_series,
    pair,
    pair_of_label,
    two_times,
)
from vlm.training.synthetic.renderer import Chart, Mark

EASY = 100
SHARE_HARD = 0.3
"""Of the calculations with numbers of three digits or more, or of two decimals, that are asked for."""
MAX_VALUES = 8


def difference(random: Random, chart: Chart) -> Question | None:
    """Ask for a difference that can be worked out in the head: whole numbers below a hundred."""
    if len(chart.spec.series_names) > 1 or not chart.values_printed:
        return None
    two = pair(random, chart)
    if two is None:
        return None
    one, other = two
    if chart.spec.format.decimals or max(one.number, other.number) >= 100:
        return None
    return Question(
        question=f"What is the difference between {one.label} and {other.label}?",
        answer=str(round(abs(one.number - other.number))),
        kind="difference",
        find_boxes=(one.label_box, other.label_box),
        copy_boxes=(one.value_box, other.value_box),
    )


def of_two(random: Random, chart: Chart) -> Question | None:
    """Ask for the sum, difference, average or ratio of two named values of a single series."""
    if has_several_series(chart):
        return None
    two = pair(random, chart)
    return two and _of_two(random, chart, two, [mark.label for mark in two], "", tuple(mark.label_box for mark in two))


def of_two_series(random: Random, chart: Chart) -> Question | None:
    """Ask for the same of two series at one label."""
    if not has_several_series(chart):
        return None
    two = pair_of_label(random, chart)
    if two is None:
        return None
    boxes = tuple(mark.series_box for mark in two)
    return _of_two(random, chart, two, [mark.series for mark in two], f" in {two[0].label}", boxes)


def _of_two(
    random: Random, chart: Chart, marks: tuple[Mark, Mark], names: list[str], when: str, boxes: tuple
) -> Question | None:
    if not _worth_asking(random, chart, marks):
        return None
    first, second = (mark.number for mark in marks)
    one, other = names
    decimals = chart.spec.format.decimals
    kind = random.choice(("sum", "sum", "difference", "difference", "average", "ratio"))
    if kind == "sum":
        answer = number_text(first + second, decimals)
        wordings = ("What is the sum of {} and {}{}?", "What is the total of {} and {}{}?", "Add {} and {}{}.")
    elif kind == "difference":
        answer = number_text(abs(first - second), decimals)
        wordings = ("What is the difference between {} and {}{}?", "What's the difference in value of {} and {}{}?")
        if first > second:
            wordings += ("How much more is {} than {}{}?", "How much greater is {} than {}{}?")
    elif kind == "average":
        answer = number_text((first + second) / 2)
        wordings = ("What is the average of {} and {}{}?", "What is the mean of {} and {}{}?")
    elif first <= 0 or second <= 0:
        return None
    else:
        answer = number_text(first / second, 2 if first >= second else 3)
        wordings = ("What is the ratio of {} to {}{}?", "What is the ratio between {} and {}{}?")
    values = tuple(mark.value_box for mark in marks)
    return _worked_out(random.choice(wordings).format(one, other, when), answer, kind, boxes, values)


def of_all(random: Random, chart: Chart) -> Question | None:
    """Ask for the sum, average or median of all values of a single series, or of one that is named."""
    marks = of_series(random, chart)
    if not 1 < len(marks) <= MAX_VALUES or not _worth_asking(random, chart, marks):
        return None
    numbers, series = [mark.number for mark in marks], marks[0].series
    kind = random.choice(("sum", "average", "average", "median"))
    if kind == "sum":
        answer, measures = number_text(sum(numbers), chart.spec.format.decimals), ("sum", "total")
    elif kind == "average":
        answer, measures = number_text(sum(numbers) / len(numbers)), ("average", "mean")
    else:
        answer, measures = number_text(statistics.median(numbers), chart.spec.format.decimals + 1), ("median",)
    measure = random.choice(measures)
    if series:
        wordings = (f"What is the {measure} of {series}?", f"What is the {measure} of all values of {series}?")
    else:
        wordings = (
            f"What is the {measure} of all {mark_noun(chart, plural=True)}?",
            f"What is the {measure} of all values?",
            f"What is the {measure} value of all {label_words(chart)}?",
            f"What is the {measure} of all the values in the chart?",
        )
    values = tuple(mark.value_box for mark in marks)
    labels = tuple(mark.label_box for mark in marks)
    return _worked_out(random.choice(wordings), answer, f"{kind}_of_all", labels, values)


def of_extremes(random: Random, chart: Chart) -> Question | None:
    """Ask for the difference or the sum of the highest and the lowest value, of a single series or of a named one."""
    marks = sorted(of_series(random, chart), key=lambda mark: mark.number)
    if len(marks) < 2:
        return None
    low, high, series = marks[0], marks[-1], marks[0].series
    if not _worth_asking(random, chart, (low, high)):
        return None
    kind = random.choice(("difference", "difference", "sum"))
    number = high.number - low.number if kind == "difference" else high.number + low.number
    between, of = ("between", f" of {series}") if series else ("between", "")
    between = between if kind == "difference" else "of"
    wordings = (
        f"What is the {kind} {between} the highest and the lowest value{of}?",
        f"What is the {kind} {between} the largest and smallest value{of}?",
    )
    if not series:
        wordings += (f"What is the {kind} {between} the largest and the smallest {mark_noun(chart, plural=False)}?",)
    return _worked_out(
        random.choice(wordings),
        number_text(number, chart.spec.format.decimals),
        f"{kind}_of_extremes",
        (low.label_box, high.label_box),
        (low.value_box, high.value_box),
    )


def change(random: Random, chart: Chart) -> Question | None:
    """Ask by how much a single series rose or fell between two times, naming what it did."""
    if (pair := two_times(random, chart)) is None:
        return None
    one, other = pair
    if one.number == other.number or not _worth_asking(random, chart, (one, other)):
        return None
    verb = "increase" if other.number > one.number else "decrease"
    question = random.choice(
        (
            f"How much did the {chart.spec.topic} {verb} from {one.label} to {other.label}?",
            f"By how much did the value {verb} between {one.label} and {other.label}?",
        )
    )
    answer = number_text(abs(other.number - one.number), chart.spec.format.decimals)
    return _worked_out(question, answer, "change", (one.label_box, other.label_box), (one.value_box, other.value_box))


def _worth_asking(random: Random, chart: Chart, marks: Sequence[Mark]) -> bool:
    """Return whether values are printed, and the numbers small enough for the head, but for a few."""
    is_easy = max(abs(mark.number) for mark in marks) < EASY and chart.spec.format.decimals < 2
    return chart.values_printed and (is_easy or random.random() < SHARE_HARD)


def _worked_out(question: str, answer: str, kind: str, find_boxes: tuple, copy_boxes: tuple) -> Question:
    return Question(
        question=question,
        answer=answer,
        kind=kind,
        find_boxes=find_boxes,
        copy_boxes=copy_boxes,
        worked_out=True,
    )
