"""Questions that are answered with Yes or No; which of the two is a fair coin, tossed over the words."""

from random import Random

from vlm.training.synthetic.canvas import Box
from vlm.training.synthetic.questions.question import (
    Question,
    extreme_of,
    has_several_series,
    mark_noun,
    pair,
    pair_of_label,
    told_apart,
    two_times,
)
from vlm.training.synthetic.questions.thresholds import threshold
from vlm.training.synthetic.renderer import Chart

ABOVE = ("greater", "higher", "larger", "more")
BELOW = ("smaller", "lower", "less")


def comparison(random: Random, chart: Chart) -> Question | None:
    """Ask whether one value is greater or smaller than another; which of the two comes first is a fair coin."""
    if len(chart.spec.series_names) > 1:
        return None
    two = pair(random, chart)
    if two is None:
        return None
    one, other = two
    word = random.choice(("greater", "higher", "larger", "smaller", "lower", "less"))
    above = word in ("greater", "higher", "larger")
    wordings = (
        f"Is {one.label} {word} than {other.label}?",
        f"Is the value of {one.label} {word} than {other.label}?",
        f"Is the value of {one.label} {word} than that of {other.label}?",
    )
    if chart.kind == "scatter":
        wordings = (f"Is the {chart.spec.topic} of {one.label} {word} than that of {other.label}?",)
    question = random.choice(wordings)
    return Question(
        question=question,
        answer="Yes" if (one.number > other.number) == above else "No",
        kind="comparison",
        find_boxes=(one.label_box, other.label_box),
        copy_boxes=(one.value_box, other.value_box),
        turned=not above,
    )


def sum_comparison(random: Random, chart: Chart) -> Question | None:
    """Ask whether two values together are more than a third; most such sums are, so near ones are looked for."""
    if has_several_series(chart) or not chart.values_printed or len(chart.marks) < 3:
        return None
    draws = [random.sample(chart.marks, 3) for _ in range(4)]
    one, other, third = min(draws, key=lambda marks: abs(marks[0].number + marks[1].number - marks[2].number))
    than, above = _than(random)
    question = random.choice(
        (
            f"Is the sum of {one.label} and {other.label} {than} {third.label}?",
            f"Is the sum of {one.label} and {other.label} {than} the value of {third.label}?",
            f"Are {one.label} and {other.label} together {than} {third.label}?",
        )
    )
    difference = one.number + other.number - third.number
    marks = (one, other, third)
    return _yes_or_no(
        question,
        difference,
        above,
        "sum_comparison",
        tuple(mark.label_box for mark in marks),
        tuple(mark.value_box for mark in marks),
    )


def smallest_two(random: Random, chart: Chart) -> Question | None:
    """Ask whether the two smallest values together are more than the largest."""
    if has_several_series(chart) or not chart.values_printed or not chart.complete or len(chart.marks) < 3:
        return None
    first, second, *_, last = sorted(chart.marks, key=lambda mark: mark.number)
    than, above = _than(random)
    nouns = mark_noun(chart, plural=True), mark_noun(chart, plural=False)
    question = random.choice(
        (
            f"Is the sum of the smallest two {nouns[0]} {than} the largest {nouns[1]}?",
            f"Is the sum of the two smallest values {than} the largest value?",
        )
    )
    marks = (first, second, last)
    return _yes_or_no(
        question,
        first.number + second.number - last.number,
        above,
        "smallest_two",
        tuple(mark.label_box for mark in marks),
        tuple(mark.value_box for mark in marks),
    )


def beyond(random: Random, chart: Chart) -> Question | None:
    """Ask whether a named value is more than a number."""
    if not chart.values_printed:
        return None
    mark = random.choice(chart.marks)
    limit = threshold(random, [0.8 * mark.number, 1.2 * mark.number], chart.spec.split)
    if limit is None or float(limit) == mark.number:
        return None
    than, above = _than(random)
    named = f"{mark.series} in {mark.label}" if mark.series else mark.label
    question = random.choice(
        (
            f"Is the value of {named} {than} {limit}?",
            f"Is {named} {than} {limit}?",
            f"Does {named} have a value {than} {limit}?",
        )
    )
    boxes = (mark.label_box,) if mark.series_box is None else (mark.label_box, mark.series_box)
    return _yes_or_no(question, mark.number - float(limit), above, "beyond", boxes, (mark.value_box,))


def is_extreme(random: Random, chart: Chart) -> Question | None:
    """Ask whether a named label has the highest or lowest value; half of the time it has."""
    if has_several_series(chart) or not chart.complete:
        return None
    high = random.random() < 0.6
    best = extreme_of(chart, chart.marks, high)
    if best is None:
        return None
    mark = best if random.random() < 0.5 else random.choice([mark for mark in chart.marks if mark is not best])
    most = random.choice(("highest", "largest") if high else ("lowest", "smallest"))
    wordings = (
        f"Is {mark.label} the {most}?",
        f"Does {mark.label} have the {most} value?",
        f"Is the value of {mark.label} the {most} in the chart?",
    )
    if chart.kind == "scatter":
        wordings = (f"Does {mark.label} have the {most} {chart.spec.topic}?",)
    return Question(
        question=random.choice(wordings),
        answer="Yes" if mark is best else "No",
        kind="is_extreme",
        find_boxes=(mark.label_box,),
        copy_boxes=(mark.value_box,),
        worked_out=True,
    )


def average_beyond(random: Random, chart: Chart) -> Question | None:
    """Ask whether the average or the total of all values is more than a number."""
    if has_several_series(chart) or not chart.values_printed or not chart.complete:
        return None
    numbers = [mark.number for mark in chart.marks]
    measure = random.choice(("average", "average", "total"))
    true = sum(numbers) / (len(numbers) if measure == "average" else 1)
    limit = threshold(random, [0.7 * true, 1.3 * true], chart.spec.split)
    if limit is None or abs(float(limit) - true) < 0.02 * abs(true):
        return None
    than, above = _than(random)
    nouns = mark_noun(chart, plural=True)
    question = random.choice(
        (f"Is the {measure} of all {nouns} {than} {limit}?", f"Is the {measure} of all values {than} {limit}?")
    )
    labels, values = (tuple(getattr(mark, name) for mark in chart.marks) for name in ("label_box", "value_box"))
    return _yes_or_no(question, true - float(limit), above, "average_beyond", labels, values)


def series_comparison(random: Random, chart: Chart) -> Question | None:
    """Ask which of two series is more at one label."""
    if not has_several_series(chart):
        return None
    two = pair_of_label(random, chart)
    if two is None or not told_apart(chart, *two):
        return None
    one, other = two
    label = one.label
    than, above = _than(random)
    question = random.choice(
        (
            f"Is {one.series} {than} {other.series} in {label}?",
            f"Is the value of {one.series} {than} {other.series} in {label}?",
            f"In {label}, is {one.series} {than} {other.series}?",
        )
    )
    series, values = (one.series_box, other.series_box), (one.value_box, other.value_box)
    difference = one.number - other.number
    return _yes_or_no(question, difference, above, "series_comparison", series, values, turned=not above)


def rose(random: Random, chart: Chart) -> Question | None:
    """Ask whether a single series rose or fell between two times."""
    if (pair := two_times(random, chart)) is None:
        return None
    one, other = pair
    if not told_apart(chart, one, other):
        return None
    up = random.random() < 0.5
    verb = random.choice(("increase", "rise", "grow") if up else ("decrease", "fall", "decline"))
    question = f"Did the {chart.spec.topic} {verb} from {one.label} to {other.label}?"
    labels, values = (one.label_box, other.label_box), (one.value_box, other.value_box)
    return _yes_or_no(question, other.number - one.number, up, "rose", labels, values, turned=up)


def _than(random: Random) -> tuple[str, bool]:
    """Return "greater than" or the like, and whether it says above."""
    above = random.random() < 0.5
    return f"{random.choice(ABOVE if above else BELOW)} than", above


def _yes_or_no(
    question: str,
    difference: float,
    above: bool,
    kind: str,
    find_boxes: tuple[Box, ...],
    copy_boxes: tuple[Box, ...],
    *,
    turned: bool = False,
) -> Question | None:
    """Return the question whether `difference` is above (or below) zero; None where rounding would decide."""
    if abs(difference) < 1e-6:
        return None
    return Question(
        question=question,
        answer="Yes" if (difference > 0) == above else "No",
        kind=kind,
        find_boxes=find_boxes,
        copy_boxes=copy_boxes,
        worked_out=True,
        turned=turned,
    )
