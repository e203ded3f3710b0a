"""A chart in a sentence."""

from random import Random

from vlm.training.synthetic.questions.question import (
    Question,
    described,
    extreme_of,
    has_several_series,
    label_word,
    label_words,
    mark_noun,
)
from vlm.training.synthetic.renderer import Chart


def caption(random: Random, chart: Chart) -> Question | None:
    """Describe the chart in one sentence: kind, title, number of marks, lowest and highest."""
    if has_several_series(chart) or not chart.values_printed or not chart.complete:
        return None
    low, high = (choose(chart.marks, key=lambda mark: mark.number) for choose in (min, max))
    titled = f' titled "{chart.title}"' if chart.title else ""
    count = f"{len(chart.marks)} {mark_noun(chart, plural=True)}"
    titles = (chart.title_box,) if chart.title_box else ()
    span = f"from {low.label} ({low.value}) to {high.label} ({high.value})"
    question = random.choice(
        ("Describe this image.", "Describe this image.", "Describe the chart.", "What does the chart show?")
    )
    return Question(
        question=question,
        answer=f"{described(chart)}{titled} with {count}, {span}.",
        kind="caption",
        find_boxes=titles + tuple(mark.label_box for mark in chart.marks),
        copy_boxes=(*titles, low.label_box, low.value_box, high.label_box, high.value_box),
    )


def series_caption(random: Random, chart: Chart) -> Question | None:
    """Describe a chart of several series: kind, title, series, number of labels, lowest and highest."""
    if not has_several_series(chart) or not chart.values_printed or not chart.complete:
        return None
    low, high = (extreme_of(chart, chart.marks, is_high) for is_high in (False, True))
    if low is None or high is None:
        return None
    titled = f' titled "{chart.title}"' if chart.title else ""
    *first, last = chart.spec.series_names
    num_labels = len(chart.spec.labels)
    counted = f"{num_labels} {label_words(chart) if num_labels > 1 else label_word(chart)}"
    ends = [f"{mark.series} in {mark.label} ({mark.value})" for mark in (low, high)]
    question = random.choice(
        ("Describe this image.", "Describe this image.", "Describe the chart.", "What does the chart show?")
    )
    titles = (chart.title_box,) if chart.title_box else ()
    legend = tuple(dict.fromkeys(mark.series_box for mark in chart.marks))
    return Question(
        question=question,
        answer=f"{described(chart)}{titled} of {', '.join(first)} and {last} for {counted}, "
        f"from {ends[0]} to {ends[1]}.",
        kind="series_caption",
        find_boxes=titles + legend,
        copy_boxes=titles
        + legend
        + tuple(box for mark in (low, high) for box in (mark.series_box, mark.label_box, mark.value_box)),
    )
