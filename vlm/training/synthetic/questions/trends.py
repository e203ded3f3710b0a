"""Which way values go with time."""

import itertools
from random import Random

from vlm.training.synthetic.questions.question import TIME_WORDS, Question, has_several_series, in_time, told_apart
from vlm.training.synthetic.renderer import Chart

SHARE_OF_STEPS = 0.75
"""Of the steps that must go one way before a whole chart is said to."""


def trend(random: Random, chart: Chart) -> Question | None:
    """Ask whether a single series rises or falls, on the whole or between two times."""
    if has_several_series(chart) or chart.spec.label_kind not in TIME_WORDS or not chart.complete:
        return None
    marks, topic = in_time(chart), chart.spec.topic
    if random.random() < 0.5:
        first, last = sorted(random.sample(range(len(marks)), 2))
        marks = marks[first : last + 1]
        question = random.choice(
            (
                f"Did the {topic} increase or decrease from {marks[0].label} to {marks[-1].label}?",
                f"From {marks[0].label} to {marks[-1].label}, did the value increase or decrease?",
            )
        )
        rises = "Increase", "Decrease"
    else:
        steps = [other.number - one.number for one, other in itertools.pairwise(marks)]
        share_up = sum(step > 0 for step in steps) / len(steps)
        if not (max(share_up, 1 - share_up) >= SHARE_OF_STEPS and (sum(steps) > 0) == (share_up > 0.5)):
            return None
        noun = "line" if chart.kind == "line" else "chart"
        question = random.choice(
            (
                f"Does the {noun} show an increasing or a decreasing trend?",
                f"Is the {topic} increasing or decreasing?",
                f"Is the trend of the {noun} increasing or decreasing?",
            )
        )
        rises = "Increasing", "Decreasing"
    if not told_apart(chart, marks[0], marks[-1]):
        return None
    return Question(
        question=question,
        answer=rises[marks[-1].number < marks[0].number],
        kind="trend",
        find_boxes=(marks[0].label_box, marks[-1].label_box),
        copy_boxes=(marks[0].value_box, marks[-1].value_box),
        worked_out=True,
    )
