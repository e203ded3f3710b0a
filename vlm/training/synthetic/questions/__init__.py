"""Questions about a drawn chart, each with its answer and where on the chart the answer is found.

Answers are as ChartQA writes them: a label as printed, a number without thousands separators, units and signs. A file
holds the questions of one family; here they are mixed.
"""

from collections.abc import Callable
from random import Random

import numpy as np

from vlm.training.synthetic.questions import (
    arithmetic,
    captions,
    colours,
    comparing,
    counting,
    extremes,
    lookups,
    places,
    shades,
    tables,
    trends,
)
from vlm.training.synthetic.questions.declined import DECLINED, decline, not_shown
from vlm.training.synthetic.questions.question import Question
from vlm.training.synthetic.questions.wording import as_people_type
from vlm.training.synthetic.renderer import Chart

__all__ = ["DECLINED", "OTHER_KINDS", "WIDE_KINDS", "Question", "ask", "ask_how_many", "decline"]

MAX_TRIES = 10
"""Of a wide question: each is as likely to be found where few kinds suit a chart, whether it is declined or not."""
NAMED_SHARE = 0.55
OTHER_KINDS = {
    "title": 3.0,
    "reverse": 3.0,
    "highest": 2.0,
    "lowest": 2.0,
    "largest_value": 1.5,
    "smallest_value": 1.5,
    "count": 1.5,
    "comparison": 2.5,
    "difference": 0.8,
    "colour": 0.8,
    "caption": 1.0,
}
"""Weights of the kinds that are no look-ups of a named value. The held-out benchmark is defined by them."""

WIDE_NAMED_SHARE = 0.38
WIDE_KINDS = OTHER_KINDS | {
    "of_two": 3.0,
    "of_two_series": 1.5,
    "of_all": 1.5,
    "of_extremes": 1.2,
    "change": 0.8,
    "second": 1.2,
    "extreme_mark": 1.5,
    "peak": 0.8,
    "extreme_of_series": 1.5,
    "extreme_series": 1.0,
    "count_labels": 0.6,
    "count_series": 0.6,
    "count_beyond": 1.5,
    "sum_comparison": 1.0,
    "smallest_two": 0.6,
    "beyond": 0.8,
    "is_extreme": 0.6,
    "average_beyond": 0.4,
    "series_comparison": 1.0,
    "rose": 0.4,
    "trend": 0.8,
    "coloured_value": 1.5,
    "coloured_name": 2.0,
    "series_colour": 1.0,
    "placed": 1.5,
    "table": 1.2,
    "series_caption": 1.0,
}
"""The same, with people's wordings beside them. Kinds that do not suit a chart are drawn again. What is declined is
measured with these."""
TAUGHT_KINDS = WIDE_KINDS | {
    "shade_name": 1.5,
    "shade_value": 1.5,
    "shade_extreme": 2.0,
    "only_colour": 0.5,
}
"""What charts to learn from are asked besides."""


def ask(
    rng: np.random.Generator,
    chart: Chart,
    num_questions: int = 6,
    *,
    wide: bool = False,
    share_declined: float = 0.0,
) -> list[Question]:
    """Return up to `num_questions` different questions, about half of them for the value of a named label.

    wide: ask what people ask too, as in ChartQA's human half, and for tables. share_declined: of the questions, how
    many are about something that the chart does not show. Both are for training; without them the questions are those
    that the reader is measured with.
    """
    random = Random(int(rng.integers(2**63)))
    ask_one = _ask_widely if wide else _ask_one
    questions: dict[str, Question] = {}
    for _ in range(num_questions * 3):
        if share_declined and random.random() < share_declined:
            question = not_shown(random, chart, ask_one, by_colour=wide)
        else:
            question = ask_one(random, chart)
        if question:
            questions.setdefault(question.question, question)
        if len(questions) == num_questions:
            break
    return list(questions.values())


def ask_how_many(rng: np.random.Generator, chart: Chart) -> list[Question]:
    """Return a question for the number of bars, points, slices or labels of `chart`, or for a caption, which tells it
    too; none where it cannot be told."""
    random = Random(int(rng.integers(2**63)))
    question = random.choice((counting.count, counting.count, counting.count_labels, captions.caption))(random, chart)
    return [question] if question else []


def _ask_one(random: Random, chart: Chart) -> Question | None:
    return _asker(random, NAMED_SHARE, OTHER_KINDS)(random, chart)


def _ask_widely(random: Random, chart: Chart) -> Question | None:
    kinds = TAUGHT_KINDS if chart.spec.split == "train" else WIDE_KINDS
    for _ in range(MAX_TRIES):
        question = _asker(random, WIDE_NAMED_SHARE, kinds)(random, chart)
        if question:
            return as_people_type(random, question)
    return None


def _asker(random: Random, share_named: float, kinds: dict[str, float]) -> Callable[[Random, Chart], Question | None]:
    if random.random() < share_named:
        return lookups.value
    return _ASKERS[random.choices(tuple(kinds), weights=tuple(kinds.values()))[0]]


_ASKERS: dict[str, Callable[[Random, Chart], Question | None]] = {
    "title": lookups.title,
    "reverse": lookups.reverse,
    "highest": lambda random, chart: extremes.extreme(random, chart, "highest"),
    "lowest": lambda random, chart: extremes.extreme(random, chart, "lowest"),
    "largest_value": lambda random, chart: extremes.extreme(random, chart, "largest_value"),
    "smallest_value": lambda random, chart: extremes.extreme(random, chart, "smallest_value"),
    "count": counting.count,
    "comparison": comparing.comparison,
    "difference": arithmetic.difference,
    "colour": colours.colour,
    "caption": captions.caption,
    "of_two": arithmetic.of_two,
    "of_two_series": arithmetic.of_two_series,
    "of_all": arithmetic.of_all,
    "of_extremes": arithmetic.of_extremes,
    "change": arithmetic.change,
    "second": extremes.second,
    "extreme_mark": extremes.extreme_mark,
    "peak": extremes.peak,
    "extreme_of_series": extremes.extreme_of_series,
    "extreme_series": extremes.extreme_series,
    "count_labels": counting.count_labels,
    "count_series": counting.count_series,
    "count_beyond": counting.count_beyond,
    "sum_comparison": comparing.sum_comparison,
    "smallest_two": comparing.smallest_two,
    "beyond": comparing.beyond,
    "is_extreme": comparing.is_extreme,
    "average_beyond": comparing.average_beyond,
    "series_comparison": comparing.series_comparison,
    "rose": comparing.rose,
    "trend": trends.trend,
    "coloured_value": colours.coloured_value,
    "coloured_name": colours.coloured_name,
    "series_colour": colours.series_colour,
    "shade_name": shades.shade_name,
    "shade_value": shades.shade_value,
    "shade_extreme": shades.shade_extreme,
    "only_colour": shades.only_colour,
    "placed": places.placed,
    "table": tables.table,
    "series_caption": captions.series_caption,
}
