"""Which is highest, lowest or second, and how much that is."""

from random import Random

from vlm.training.synthetic.questions.question import (
    TIME_WORDS,
    Question,
    extreme_of,
    has_several_series,
    label_word,
    mark_noun,
    of_series,
    told_apart,
    value_of,
)
from vlm.training.synthetic.renderer import Chart, Mark
from vlm.training.synthetic.spec import bare_number

SIZES = {
    "bar": (("largest", "highest", "tallest"), ("smallest", "lowest", "shortest")),
    "horizontal bar": (("largest", "longest"), ("smallest", "shortest")),
    "pie": (("largest", "biggest"), ("smallest",)),
    "point": (("highest",), ("lowest",)),
}
"""What the largest and the smallest bar or slice are called, and of other charts the points."""


def extreme(random: Random, chart: Chart, kind: str) -> Question | None:
    if has_several_series(chart) or not chart.complete:
        return None
    high = kind in ("highest", "largest_value")
    mark = (max if high else min)(chart.marks, key=lambda mark: mark.number)
    word, topic = label_word(chart), chart.spec.topic
    if kind in ("highest", "lowest"):
        most = random.choice(("highest", "largest", "biggest") if high else ("lowest", "smallest"))
        wordings = (
            f"Which {word} has the {most} value?",
            f"What {word} has the {most} value?",
            f"Which {word} had the {most} {topic}?",
            f"Which {word} is the {most}?",
        )
        question = random.choice(wordings[2:3] if chart.kind == "scatter" else wordings)
        find, copy, answer = mark.value_box, mark.label_box, mark.label
    elif not chart.values_printed:
        return None
    else:
        most = random.choice(("highest", "largest") if high else ("lowest", "smallest"))
        question = random.choice(
            (f"What is the {most} value?", f"What is the {most} value in the chart?", f"What was the {most} {topic}?")
        )
        find, copy, answer = mark.label_box, mark.value_box, bare_number(mark.value)
    return Question(question=question, answer=answer, kind=kind, find_boxes=(find,), copy_boxes=(copy,))


def second(random: Random, chart: Chart) -> Question | None:
    """Ask which is second from the top or from the bottom, or how much that is."""
    if has_several_series(chart) or not chart.complete or len(chart.marks) < 3:
        return None
    most, place = random.choice((("highest", -2), ("largest", -2), ("lowest", 1), ("smallest", 1)))
    ordered = sorted(chart.marks, key=lambda mark: mark.number)
    mark = ordered[place]
    if not all(told_apart(chart, mark, ordered[place + step]) for step in (-1, 1)):
        return None
    word, noun = label_word(chart), mark_noun(chart, plural=False)
    if chart.values_printed and random.random() < 0.4:
        question = random.choice(
            (
                f"What is the second {most} value?",
                f"What is the value of the second {most} {noun}?",
                f"What was the second {most} {chart.spec.topic}?",
            )
        )
        return value_of(mark, question, "second_value")
    wordings = (
        f"Which {word} had the second {most} {chart.spec.topic}?",
        f"Which {word} has the second {most} value?",
        f"What is the second {most} {word}?",
        f"Which {word} does the second {most} {noun} represent?",
    )
    return _label_of(mark, random.choice(wordings[:1] if chart.kind == "scatter" else wordings), "second")


def extreme_mark(random: Random, chart: Chart) -> Question | None:
    """Ask for the value or the label of the largest or smallest bar, of all series."""
    high = random.random() < 0.6
    mark = extreme_of(chart, chart.marks, high) if chart.complete and not chart.stacked else None
    if mark is None or chart.kind == "table" or min(mark.number for mark in chart.marks) < 0:
        return None
    size = random.choice(SIZES.get(chart.kind, SIZES["point"])[not high])
    noun = mark_noun(chart, plural=False)
    if chart.values_printed and random.random() < 0.6:
        question = random.choice(
            (f"What is the value of the {size} {noun}?", f"What's the value of the {size} {noun} in the chart?")
        )
        return value_of(mark, question, "extreme_mark_value")
    question = random.choice(
        (f"What does the {size} {noun} represent?", f"Which {label_word(chart)} is represented by the {size} {noun}?")
    )
    return _label_of(mark, question, "extreme_mark")


def peak(random: Random, chart: Chart) -> Question | None:
    """Ask when a single series was at its highest or lowest."""
    if has_several_series(chart) or chart.spec.label_kind not in TIME_WORDS or not chart.complete:
        return None
    high = random.random() < 0.6
    mark, topic, word = extreme_of(chart, chart.marks, high), chart.spec.topic, label_word(chart)
    if mark is None:
        return None
    noun, on = "line" if chart.kind == "line" else "chart", "On" if word == "day" else "In"
    if high:
        wordings = (
            f"{on} which {word} did the {noun} peak?",
            f"When did the {topic} peak?",
            f"What is the {word} of the peak?",
            f"{on} which {word} was the {topic} the highest?",
            f"{on} what {word} did the {topic} reach its maximum?",
        )
    else:
        wordings = (
            f"{on} which {word} was the {topic} the lowest?",
            f"When was the {topic} at its lowest?",
            f"{on} what {word} did the {topic} reach its minimum?",
        )
    return _label_of(mark, random.choice(wordings), "peak")


def extreme_of_series(random: Random, chart: Chart) -> Question | None:
    """Ask when or where one of several series is highest or lowest, or how much that is."""
    if not has_several_series(chart):
        return None
    high = random.random() < 0.6
    mark = extreme_of(chart, of_series(random, chart), high)
    if mark is None:
        return None
    series = mark.series
    most, word = random.choice(("highest", "largest") if high else ("lowest", "smallest")), label_word(chart)
    if chart.values_printed and random.random() < 0.5:
        question = random.choice(
            (f"What is the {most} value of {series}?", f"What is the {most} value for {series} in the chart?")
        )
        return value_of(mark, question, "series_extreme_value", named=(mark.series_box,))
    question = random.choice(
        (
            f"Which {word} has the {most} value of {series}?",
            f"In which {word} is the value of {series} the {most}?",
            f"Which {word} has the {most} {series}?",
        )
    )
    return _label_of(mark, question, "series_extreme")


def extreme_series(random: Random, chart: Chart) -> Question | None:
    """Ask which of several series is highest or lowest at one label."""
    if not has_several_series(chart) or not chart.complete:
        return None
    label, high = random.choice(chart.marks).label, random.random() < 0.6
    mark = extreme_of(chart, [mark for mark in chart.marks if mark.label == label], high)
    if mark is None:
        return None
    most = random.choice(("highest", "largest") if high else ("lowest", "smallest"))
    wordings = (
        f"Which group has the {most} value in {label}?",
        f"What has the {most} value for {label}?",
        f"Which item of the legend is the {most} in {label}?",
    )
    return Question(
        question=random.choice(wordings[:2] if chart.kind == "table" else wordings),
        answer=mark.series,
        kind="extreme_series",
        find_boxes=(mark.label_box, mark.value_box),
        copy_boxes=(mark.series_box,),
    )


def _label_of(mark: Mark, question: str, kind: str) -> Question:
    return Question(
        question=question, answer=mark.label, kind=kind, find_boxes=(mark.value_box,), copy_boxes=(mark.label_box,)
    )
