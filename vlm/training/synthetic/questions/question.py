"""What a question about a picture is, and the words that askers of all kinds share."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from vlm.training.synthetic.canvas import Box
from vlm.training.synthetic.renderer import Chart, Mark
from vlm.training.synthetic.spec import bare_number

TIME_WORDS = ("year", "month", "quarter", "day")
"""Kinds of labels that follow one another in time."""
LEAST_SEEN = 0.02
"""Of the largest value: a difference that can be seen where values are not printed."""
MANY_TEXTS = ("caption", "series_caption", "table")
"""Kinds whose answers copy one text after another, in the order of `copy_boxes`."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its evidence, boxes (x0, y0, x1, y1) in pixels of the picture.

    kind | find_boxes: where to look first | copy_boxes: the text that the answer is copied or worked out from
    named_value | the label asked about | its value
    series_value | the same, and its series in the legend | its value
    reverse | the value asked about | its label
    highest, lowest | the value of that bar (its tip where no value is printed) | its label
    largest_value, smallest_value | the label of that bar | its value
    comparison, difference | both labels | both values (worked out)
    count | all labels | all labels (worked out)
    colour | the label | the bar (worked out)
    title | the title | the title
    caption | title and labels | title, and labels and values of the bars named
    declined | nothing: what it names is not there | nothing
    The kinds of people's wordings tell theirs in the files beside this one.
    """

    question: str
    answer: str
    kind: str
    find_boxes: tuple[Box, ...]
    copy_boxes: tuple[Box, ...]
    worked_out: bool = False
    """No character of the answer is copied, even where the same one is printed in `copy_boxes`."""
    turned: bool = False
    """Two are compared, and the answer is Yes where the second one is more."""

    @property
    def label_box(self) -> tuple[Box, ...]:
        return self.find_boxes

    @property
    def value_box(self) -> tuple[Box, ...]:
        return self.copy_boxes


def label_word(chart: Chart) -> str:
    """Return what a question calls one of the labels, such as "country"."""
    kind = chart.spec.label_kind
    return {"invented": "category", "group": "group", "sector": "sector"}.get(kind, kind)


def label_words(chart: Chart) -> str:
    """Return the plural of `label_word`."""
    word = label_word(chart)
    return {"person": "people", "day": "days"}.get(word, f"{word[:-1]}ies" if word.endswith("y") else f"{word}s")


def mark_noun(chart: Chart, plural: bool) -> str:
    """Return what a question calls what stands for one value."""
    return f"{chart.mark_noun}s" if plural else chart.mark_noun


def coloured_noun(chart: Chart) -> str:
    """Return what a question calls a thing of one colour: of a line chart the whole line."""
    return chart.kind if chart.kind in ("line", "area") else chart.mark_noun


def described(chart: Chart) -> str:
    """Return what a caption calls the chart, such as "A bar chart"."""
    return "A table" if chart.kind == "table" else f"{'An' if chart.kind[0] in 'aeiou' else 'A'} {chart.kind} chart"


def has_several_series(chart: Chart) -> bool:
    return len(chart.spec.series_names) > 1


def pair(random: Random, chart: Chart) -> tuple[Mark, Mark] | None:
    """Draw two marks of one series; None where it has fewer."""
    series = random.choice(chart.spec.series_names)
    marks = [mark for mark in chart.marks if mark.series == series]
    return tuple(random.sample(marks, 2)) if len(marks) > 1 else None


def pair_of_label(random: Random, chart: Chart) -> tuple[Mark, Mark] | None:
    """Draw two marks of one label, of different series; None where it has fewer."""
    label = random.choice(chart.marks).label
    marks = [mark for mark in chart.marks if mark.label == label]
    return tuple(random.sample(marks, 2)) if len(marks) > 1 else None


def of_series(random: Random, chart: Chart) -> list[Mark]:
    """Draw a series, or take the only one, and return all its marks; none where not all of the chart have one."""
    series = random.choice(chart.spec.series_names)
    return [mark for mark in chart.marks if mark.series == series] if chart.complete else []


def told_apart(chart: Chart, one: Mark, other: Mark) -> bool:
    """Return whether it can be told which of two values is greater."""
    largest = max(abs(number) for row in chart.spec.numbers for number in row)
    return abs(one.number - other.number) > (0.0 if chart.values_printed else LEAST_SEEN * largest)


def extreme_of(chart: Chart, marks: Sequence[Mark], high: bool) -> Mark | None:
    """Return the one with the highest or lowest value; None where it cannot be told from the next."""
    first, *others = sorted(marks, key=lambda mark: mark.number, reverse=high) or [None]
    return first if others and told_apart(chart, first, others[0]) else None


def in_time(chart: Chart) -> list[Mark]:
    """Return the marks in the order of time: years may run to the left."""
    marks = list(chart.marks)
    return sorted(marks, key=lambda mark: mark.label) if all(mark.label.isdigit() for mark in marks) else marks


def two_times(random: Random, chart: Chart) -> tuple[Mark, Mark] | None:
    """Draw two marks of a single series over time, the earlier first; None where there are none."""
    if has_several_series(chart) or chart.spec.label_kind not in TIME_WORDS:
        return None
    marks = in_time(chart)
    if len(marks) < 2:
        return None
    first, last = sorted(random.sample(range(len(marks)), 2))
    return marks[first], marks[last]


def value_of(mark: Mark, question: str, kind: str, named: tuple[Box, ...] = ()) -> Question:
    """Return a question whose answer is the value of a mark, found by its label and by what else is `named`."""
    return Question(
        question=question,
        answer=bare_number(mark.value),
        kind=kind,
        find_boxes=(mark.label_box, *named),
        copy_boxes=(mark.value_box,),
    )


def number_text(number: float, decimals: int = 2) -> str:
    """Return a number as answers give it: rounded, without zeros at the end."""
    text = f"{round(number, decimals) + 0.0:.{decimals}f}"  # no "-0"
    return text.rstrip("0").rstrip(".") if "." in text else text
