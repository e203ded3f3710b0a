"""Questions by colour and from the legend."""

from random import Random

from vlm.training.synthetic.questions.question import (
    Question,
    coloured_noun,
    has_several_series,
    label_word,
    mark_noun,
    value_of,
)
from vlm.training.synthetic.renderer import Chart, Mark

UNCOLOURED = ("area", "table")
"""Kinds of charts that nobody asks the colours of: areas mix, and a table has none."""


def colour(random: Random, chart: Chart) -> Question | None:
    if chart.kind in ("line", *UNCOLOURED) or has_several_series(chart):
        return None
    mark = random.choice(chart.marks)
    spelling = random.choice(("colour", "color"))
    return Question(
        question=f"What {spelling} is the {mark_noun(chart, plural=False)} for {mark.label}?",
        answer=mark.colour,
        kind="colour",
        find_boxes=(mark.label_box,),
        copy_boxes=(mark.mark_box,),
    )


def coloured_value(random: Random, chart: Chart) -> Question | None:
    """Ask for the value of a bar told by its colour, and by its label where there are several series."""
    mark = told_by_colour(random, chart)
    if mark is None or not chart.values_printed:
        return None
    noun = mark_noun(chart, plural=False) if chart.kind != "line" else "line"
    of = f"{mark.colour} {noun}"
    if mark.series_box is None:
        wordings = (f"What is the value of the {of}?", f"What's the value of the {of}?", f"How much is the {of}?")
        named = ()
    else:
        wordings = (
            f"What is the value of the {of} in {mark.label}?",
            f"What's the value of the {of} for {mark.label}?",
            f"In {mark.label}, what is the value of the {of}?",
        )
        named = (mark.series_box,)
    return value_of(mark, random.choice(wordings), "coloured_value", named)


def coloured_name(random: Random, chart: Chart) -> Question | None:
    """Ask what a colour stands for: a series of the legend, or a label."""
    mark = told_by_colour(random, chart)
    if mark is None:
        return None
    noun, several = coloured_noun(chart), mark.series_box is not None
    word = "group" if several else label_word(chart)
    question = random.choice(
        (
            f"What does the {mark.colour} {noun} represent?",
            f"What does the {mark.colour} {noun} indicate?",
            f"What does the {random.choice(('color', 'colour'))} {mark.colour} stand for?",
            f"Which {word} is represented by the {mark.colour} {noun}?",
            f"What is shown in {mark.colour}?",
        )
    )
    box = mark.series_box if several else mark.label_box
    return Question(
        question=question,
        answer=mark.series if several else mark.label,
        kind="coloured_name",
        find_boxes=(box,),
        copy_boxes=(box,),
    )


def series_colour(random: Random, chart: Chart) -> Question | None:
    """Ask in which colour a series is drawn."""
    if not has_several_series(chart) or chart.kind in UNCOLOURED:
        return None
    mark = random.choice(chart.marks)
    noun, colour = coloured_noun(chart), random.choice(("color", "colour"))
    question = random.choice(
        (
            f"What {colour} represents {mark.series}?",
            f"What {colour} is the {noun} of {mark.series}?",
            f"Which {colour} stands for {mark.series}?",
            f"What is the {colour} of {mark.series}?",
        )
    )
    return Question(
        question=question,
        answer=mark.colour,
        kind="series_colour",
        find_boxes=(mark.series_box,),
        copy_boxes=(mark.series_box,),
        worked_out=True,
    )


def told_by_colour(random: Random, chart: Chart) -> Mark | None:
    """Draw a mark whose colour's name no other series has, or no other mark where there is one series."""
    if chart.kind in UNCOLOURED or not (chart.complete or has_several_series(chart)):
        return None
    mark = random.choice(chart.marks)
    if mark.series_box is None:
        others = [other for other in chart.marks if other is not mark]
    else:
        others = [other for other in chart.marks if other.series != mark.series]
    return None if not others or mark.colour in {other.colour for other in others} else mark
