"""Questions about what a picture does not show, which are declined.

They are asked of a chart that does show it, or nearly: the wordings are those of the questions that are answered, so
that only the picture tells which is which.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from string import digits

from vlm.training.synthetic.questions.absent import absent_name, changed
from vlm.training.synthetic.questions.colours import UNCOLOURED, coloured_name, coloured_value
from vlm.training.synthetic.questions.lookups import reverse
from vlm.training.synthetic.questions.question import Question, has_several_series
from vlm.training.synthetic.questions.shades import WITHOUT_DEPTH
from vlm.training.synthetic.renderer import Chart, Mark
from vlm.training.synthetic.spec import bare_number
from vlm.training.synthetic.style import COLOURS
from vlm.training.synthetic.words import in_split

DECLINED = "The picture does not show this."
"""What is replied. Each word is one token, and no other answer begins with the first, which tells how sure one is."""

MAX_TRIES = 40
LEAST_APART = 90.0
"""Of (red, green, blue), from which nobody calls one colour by the name of another."""
SHARE_DEEP = 0.3
"""Of the colours that charts to learn from are asked for in vain, those said to be dark or light."""
Asker = Callable[[Random, Chart], Question | None]


def decline(question: str) -> Question:
    """Return a question that is declined: there is nothing to find and nothing to copy."""
    return Question(question=question, answer=DECLINED, kind="declined", find_boxes=(), copy_boxes=())


def not_shown(random: Random, chart: Chart, ask_one: Asker, *, by_colour: bool) -> Question | None:
    """Return a question about a label, a series, a value or a colour that the chart does not show.

    ask_one: draws a question about a chart. by_colour: whether it may be one about a colour.
    """
    kinds = ["label"] * 6 + ["series"] * (4 * has_several_series(chart)) + ["value"] + ["colour"] * by_colour
    kind = random.choice(kinds)
    if kind == "value":
        return _about_absent_value(random, chart)
    if kind == "colour":
        return _about_absent_colour(random, chart)
    other, absent = (_with_absent_label if kind == "label" else _with_absent_series)(random, chart)
    return absent and _naming(random, other, absent, ask_one)


def _naming(random: Random, chart: Chart, absent: str, ask_one: Asker) -> Question | None:
    """Return a question about `chart`, declined, in which `absent` is named."""
    named = re.compile(rf"(?<!\w){re.escape(absent)}(?!\w)")
    if named.search(chart.spec.topic):
        return None
    for _ in range(MAX_TRIES):
        question = ask_one(random, chart)
        if question and named.search(question.question):
            return decline(question.question)
    return None


def _with_absent_label(random: Random, chart: Chart) -> tuple[Chart, str | None]:
    """Return a chart in which a label gave way to one that is not shown, and that; few labels more are kept."""
    label = random.choice(chart.marks).label
    absent = absent_name(random, chart, label, chart.spec.label_kind)
    if absent is None:
        return chart, None
    others = list(dict.fromkeys(mark.label for mark in chart.marks if mark.label != label))
    kept = random.sample(others, min(2, len(others)))
    marks = [
        replace(mark, label=absent if mark.label == label else mark.label)
        for mark in chart.marks
        if mark.label in (label, *kept)
    ]
    return _with(chart, marks, labels=(*chart.spec.labels, absent)), absent


def _with_absent_series(random: Random, chart: Chart) -> tuple[Chart, str | None]:
    """Return the same for a series; one series more is kept."""
    name, kept = random.sample(chart.spec.series_names, 2)
    absent = absent_name(random, chart, name, "year" if name.isdigit() else "group")
    if absent is None:
        return chart, None
    marks = [
        replace(mark, series=absent if mark.series == name else mark.series)
        for mark in chart.marks
        if mark.series in (name, kept)
    ]
    return _with(chart, marks, series_names=(absent, kept)), absent


def _with(chart: Chart, marks: list[Mark], **spec) -> Chart:
    return replace(chart, marks=tuple(marks), spec=replace(chart.spec, **spec))


def _about_absent_value(random: Random, chart: Chart) -> Question | None:
    """Ask which label has a value that none has."""
    if not (chart.values_printed and chart.complete):
        return None
    mark = random.choice(chart.marks)
    shown = {bare_number(mark.value) for mark in chart.marks}
    for _ in range(MAX_TRIES):
        places = [place for place, char in enumerate(mark.value) if char.isdigit()]
        value = changed(random, mark.value, random.sample(places, min(len(places), random.choice((1, 1, 2)))), digits)
        bare = bare_number(value)
        if bare not in shown and bare[0] != "0" and in_split(re.sub(r"\D", "", bare), chart.spec.split):
            question = reverse(random, _with(chart, [replace(mark, value=value)]))
            return question and decline(question.question)
    return None


def _about_absent_colour(random: Random, chart: Chart) -> Question | None:
    """Ask about a bar, line or slice of a colour that none has, nor one that might be called so."""
    shown = {mark.shade for mark in chart.marks}
    absents = [
        name
        for name, shades in COLOURS[chart.spec.split].items()
        if min(math.dist(one, other) for one in shown for other in shades) > LEAST_APART
    ]
    if not absents or chart.kind in UNCOLOURED:
        return None
    absent, one = random.choice(absents), random.choice(chart.marks)
    if chart.spec.split == "train" and absent not in WITHOUT_DEPTH and random.random() < SHARE_DEEP:
        absent = f"{random.choice(('dark', 'light'))} {absent}"
    is_it = (lambda mark: mark.series == one.series) if has_several_series(chart) else (lambda mark: mark is one)
    marks = [replace(mark, colour=absent) if is_it(mark) else mark for mark in chart.marks]
    return _naming(random, _with(chart, marks), absent, random.choice((coloured_value, coloured_name)))
