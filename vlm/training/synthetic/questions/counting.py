"""How many there are: of bars, of series, of colours, and of values beyond a number."""

from random import Random

from vlm.training.synthetic.questions.colours import UNCOLOURED
from vlm.training.synthetic.questions.question import (
    Question,
    coloured_noun,
    has_several_series,
    label_words,
    mark_noun,
    of_series,
)
from vlm.training.synthetic.questions.thresholds import threshold
from vlm.training.synthetic.renderer import Chart


def count(random: Random, chart: Chart) -> Question | None:
    if has_several_series(chart) or not chart.complete or chart.kind == "area":
        return None
    noun = mark_noun(chart, plural=True)
    boxes = tuple(mark.label_box for mark in chart.marks)
    question = random.choice(
        (f"How many {noun} are there?", f"How many {noun} are in the chart?", f"Count the {noun}.")
    )
    return Question(question=question, answer=str(len(chart.marks)), kind="count", find_boxes=boxes, copy_boxes=boxes)


def count_labels(random: Random, chart: Chart) -> Question | None:
    """Ask how many labels there are, whatever stands for them."""
    words = label_words(chart)
    # Series are called groups too.
    if not chart.complete or (has_several_series(chart) and words == "groups"):
        return None
    boxes = tuple(dict.fromkeys(mark.label_box for mark in chart.marks))
    question = random.choice(
        (
            f"How many {words} are shown?",
            f"How many {words} are in the chart?",
            f"How many {words} does the chart show?",
        )
    )
    return _counted(question, len(boxes), "count_labels", boxes)


def count_series(random: Random, chart: Chart) -> Question | None:
    """Ask how many series or colours there are."""
    if chart.kind in ("pie", *UNCOLOURED) or not chart.complete:
        return None
    if has_several_series(chart):
        boxes = tuple(dict.fromkeys(mark.series_box for mark in chart.marks))
        nouns = ["colors", "lines" if chart.kind == "line" else "series"]
        nouns += ["groups"] if label_words(chart) != "groups" else []
        question = random.choice(
            (
                f"How many {random.choice(nouns)} are there in the chart?",
                "How many items are in the legend?",
                f"How many {random.choice(nouns)} are shown?",
            )
        )
        return _counted(question, len(boxes), "count_series", boxes)
    shades = {mark.shade for mark in chart.marks}
    if len({mark.colour for mark in chart.marks}) != len(shades):
        return None
    question = f"How many {random.choice(('colors', 'colours'))} are used for the {coloured_noun(chart)}s?"
    return _counted(question, len(shades), "count_series", tuple(mark.mark_box for mark in chart.marks))


def count_beyond(random: Random, chart: Chart) -> Question | None:
    """Ask how many values, of one series, are above or below a number that is none of them."""
    if not chart.values_printed:
        return None
    marks = of_series(random, chart)
    limit = threshold(random, [mark.number for mark in marks], chart.spec.split)
    if limit is None:
        return None
    series = marks[0].series
    above = random.random() < 0.5
    than = random.choice(("above", "over", "greater than", "more than") if above else ("below", "under", "less than"))
    noun, words = mark_noun(chart, plural=True), label_words(chart)
    if series:
        question = random.choice(
            (
                f"How many values of {series} are {than} {limit}?",
                f"In how many {words} is {series} {than} {limit}?",
            )
        )
    else:
        question = random.choice(
            (
                f"How many {noun} are {than} {limit}?",
                f"How many {noun} have a value {than} {limit}?",
                f"How many {words} have a value {than} {limit}?",
                f"How many values are {than} {limit}?",
            )
        )
    number = sum((mark.number > float(limit)) == above for mark in marks)
    return _counted(question, number, "count_beyond", tuple(mark.value_box for mark in marks))


def _counted(question: str, number: int, kind: str, boxes: tuple) -> Question:
    return Question(
        question=question, answer=str(number), kind=kind, find_boxes=boxes, copy_boxes=boxes, worked_out=True
    )
