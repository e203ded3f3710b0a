"""Questions about a bar or point that is told by where it stands."""

from random import Random

from vlm.training.synthetic.questions.question import Question, has_several_series, label_word, mark_noun
from vlm.training.synthetic.renderer import Chart
from vlm.training.synthetic.spec import bare_number

ACROSS = {"leftmost": 0, "first": 0, "rightmost": -1, "last": -1}
DOWN = {"top": 0, "topmost": 0, "uppermost": 0, "bottom": -1, "lowermost": -1}


def placed(random: Random, chart: Chart) -> Question | None:
    """Ask for the value or the label of the bar at an end of the chart."""
    if has_several_series(chart) or not chart.complete or chart.kind not in ("bar", "horizontal bar", "line"):
        return None
    places, axis = (DOWN, 1) if chart.kind == "horizontal bar" else (ACROSS, 0)
    place = random.choice(tuple(places))
    mark = sorted(chart.marks, key=lambda mark: mark.mark_box[axis] + mark.mark_box[axis + 2])[places[place]]
    noun = mark_noun(chart, plural=False)
    if chart.values_printed and random.random() < 0.6:
        question = random.choice(
            (f"What is the value of the {place} {noun}?", f"What's the value of the {place} {noun} in the chart?")
        )
        answer, kind, find, copy = bare_number(mark.value), "placed_value", mark.label_box, mark.value_box
    else:
        question = random.choice(
            (
                f"What does the {place} {noun} represent?",
                f"Which {label_word(chart)} is the {place} {noun}?",
                f"What is the label of the {place} {noun}?",
            )
        )
        answer, kind, find, copy = mark.label, "placed_name", mark.label_box, mark.label_box
    return Question(question=question, answer=answer, kind=kind, find_boxes=(find,), copy_boxes=(copy,))
