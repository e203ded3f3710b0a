"""Questions about a drawn chart, each with its answer and where on the chart the answer is found.

Answers are as ChartQA writes them: a label as printed, a number without thousands separators, units and signs.
"""

from dataclasses import dataclass
from random import Random

import numpy as np

from vlm.training.synthetic.canvas import Box
from vlm.training.synthetic.renderer import Chart, Mark
from vlm.training.synthetic.spec import bare_number
from vlm.training.synthetic.words import YEARS, words

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


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its evidence, boxes (x0, y0, x1, y1) in pixels of the chart.

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
    """

    question: str
    answer: str
    kind: str
    find_boxes: tuple[Box, ...]
    copy_boxes: tuple[Box, ...]

    @property
    def label_box(self) -> tuple[Box, ...]:
        return self.find_boxes

    @property
    def value_box(self) -> tuple[Box, ...]:
        return self.copy_boxes


def ask(rng: np.random.Generator, chart: Chart, num_questions: int = 6) -> list[Question]:
    """Return up to `num_questions` different questions, about half of them for the value of a named label."""
    random = Random(int(rng.integers(2**63)))
    questions: dict[str, Question] = {}
    for _ in range(num_questions * 3):
        if random.random() < NAMED_SHARE:
            kind = "value"
        else:
            kind = random.choices(tuple(OTHER_KINDS), weights=tuple(OTHER_KINDS.values()))[0]
        question = _ASKERS[kind](random, chart)
        if question:
            questions.setdefault(question.question, question)
        if len(questions) == num_questions:
            break
    return list(questions.values())


def _value(random: Random, chart: Chart) -> Question | None:
    if not chart.values_printed:
        return None
    mark = random.choice(chart.marks)
    templates = _value_templates(chart)
    topic = _wordy_topic(random, chart) if random.random() < 0.4 else chart.spec.topic
    question = random.choice(templates).format(label=mark.label, topic=topic, series=mark.series)
    if random.random() < 0.1:
        question = _instructed(random, question)
    boxes = (mark.label_box,) if mark.series_box is None else (mark.label_box, mark.series_box)
    return Question(
        question=question,
        answer=bare_number(mark.value),
        kind="named_value" if mark.series_box is None else "series_value",
        find_boxes=boxes,
        copy_boxes=(mark.value_box,),
    )


def _value_templates(chart: Chart) -> tuple[str, ...]:
    """Return the wordings that suit the contents; all name the label, and the series where there are several."""
    spec = chart.spec
    if len(spec.series_names) > 1:
        return (
            "What is the value of {series} in {label}?",
            "What is the value of {label} for {series}?",
            "What was the {topic} for {series} in {label}?",
            "How much is {series} for {label}?",
        )
    general = (
        "What is the value of {label}?",
        "What is the value for {label}?",
        "What value does {label} have?",
        "What number is shown for {label}?",
        "How much is {label}?",
        "What was the value of {label}?",
    )
    when = "in {label}" if spec.label_kind in ("year", "month", "country", "place") else "for {label}"
    if spec.quantity == "count":
        told = (f"How many {{topic}} were there {when}?", f"How many {{topic}} {when}?", f"{when}, how many {{topic}}?")
    else:
        told = (f"What was the {{topic}} {when}?", f"What is the {{topic}} {when}?", f"How much {{topic}} {when}?")
    told = tuple(template[0].upper() + template[1:] for template in told)
    if "%" in spec.format.suffix:
        told += (f"What percentage was shown {when}?", "What percentage does {label} have?")
    if spec.label_kind in ("country", "company", "person", "product", "group"):
        told += ("What was {label}'s {topic}?", "What is {label}'s value?")
    return general + told + told


def _wordy_topic(random: Random, chart: Chart) -> str:
    """Name the topic with a place, a company or a year that the chart does not show, as questions of people do."""
    spec, topic = chart.spec, chart.spec.topic
    shown = " ".join((*spec.labels, *spec.series_names))
    kind = random.choice(("place", "country", "company", "product", "year"))
    year = str(random.randint(*YEARS[spec.split]))
    other = year if kind == "year" else random.choice(words(kind, spec.split))
    if other in shown or spec.label_kind == kind:
        return topic
    where = {"company": (f"{other}'s {topic}", f"{topic} of {other}"), "product": (f"{other.lower()} {topic}",)}
    return random.choice(where.get(kind, (f"{topic} in {other}",)))


def _instructed(random: Random, question: str) -> str:
    """Add what benchmarks tell a model to do around their questions."""
    return random.choice(
        (
            f"{question}\nAnswer the question with a single word.",
            f"{question}\nAnswer the question using a single word or phrase.",
            f"{question} Answer briefly.",
            f"Question: {question}\nShort answer:",
            f"Look at the chart and answer. {question}",
        )
    )


def _reverse(random: Random, chart: Chart) -> Question | None:
    mark = random.choice(chart.marks)
    same = [other for other in chart.marks if bare_number(other.value) == bare_number(mark.value)]
    if not chart.values_printed or len(same) > 1:
        return None
    kind = _label_word(chart)
    value = random.choice((mark.value, bare_number(mark.value)))
    question = random.choice(
        (
            f"Which {kind} has the value {value}?",
            f"Which {kind} has {value}?",
            f"What {kind} has a value of {value}?",
            f"{'In which' if kind in ('year', 'month') else 'Which'} {kind} was the value {value}?",
        )
    )
    return Question(
        question=question,
        answer=mark.label,
        kind="reverse",
        find_boxes=(mark.value_box,),
        copy_boxes=(mark.label_box,),
    )


def _label_word(chart: Chart) -> str:
    kind = chart.spec.label_kind
    return {"invented": "category", "group": "group", "sector": "sector"}.get(kind, kind)


def _extreme(random: Random, chart: Chart, kind: str) -> Question | None:
    if len(chart.spec.series_names) > 1:
        return None
    high = kind in ("highest", "largest_value")
    mark = (max if high else min)(chart.marks, key=lambda mark: mark.number)
    word, topic = _label_word(chart), chart.spec.topic
    if kind in ("highest", "lowest"):
        most = random.choice(("highest", "largest", "biggest") if high else ("lowest", "smallest"))
        question = random.choice(
            (
                f"Which {word} has the {most} value?",
                f"What {word} has the {most} value?",
                f"Which {word} had the {most} {topic}?",
                f"Which {word} is the {most}?",
            )
        )
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


def _count(random: Random, chart: Chart) -> Question | None:
    if len(chart.spec.series_names) > 1:
        return None
    noun = _mark_noun(chart, plural=True)
    boxes = tuple(mark.label_box for mark in chart.marks)
    question = random.choice(
        (f"How many {noun} are there?", f"How many {noun} are in the chart?", f"Count the {noun}.")
    )
    return Question(question=question, answer=str(len(chart.marks)), kind="count", find_boxes=boxes, copy_boxes=boxes)


def _mark_noun(chart: Chart, plural: bool) -> str:
    noun = {"line": "point", "pie": "slice"}.get(chart.kind, "bar")
    return f"{noun}s" if plural else noun


def _pair(random: Random, chart: Chart) -> tuple[Mark, Mark]:
    series = random.choice(chart.spec.series_names)
    one, other = random.sample([mark for mark in chart.marks if mark.series == series], 2)
    return one, other


def _comparison(random: Random, chart: Chart) -> Question | None:
    """Ask whether one value is greater or smaller than another; which of the two comes first is a fair coin."""
    if len(chart.spec.series_names) > 1:
        return None
    one, other = _pair(random, chart)
    word = random.choice(("greater", "higher", "larger", "smaller", "lower", "less"))
    above = word in ("greater", "higher", "larger")
    question = random.choice(
        (
            f"Is {one.label} {word} than {other.label}?",
            f"Is the value of {one.label} {word} than {other.label}?",
            f"Is the value of {one.label} {word} than that of {other.label}?",
        )
    )
    return Question(
        question=question,
        answer="Yes" if (one.number > other.number) == above else "No",
        kind="comparison",
        find_boxes=(one.label_box, other.label_box),
        copy_boxes=(one.value_box, other.value_box),
    )


def _difference(random: Random, chart: Chart) -> Question | None:
    """Ask for a difference that can be worked out in the head: whole numbers below a hundred."""
    if len(chart.spec.series_names) > 1 or not chart.values_printed:
        return None
    one, other = _pair(random, chart)
    if chart.spec.format.decimals or max(one.number, other.number) >= 100:
        return None
    return Question(
        question=f"What is the difference between {one.label} and {other.label}?",
        answer=str(round(abs(one.number - other.number))),
        kind="difference",
        find_boxes=(one.label_box, other.label_box),
        copy_boxes=(one.value_box, other.value_box),
    )


def _colour(random: Random, chart: Chart) -> Question | None:
    if chart.kind == "line" or len(chart.spec.series_names) > 1:
        return None
    mark = random.choice(chart.marks)
    spelling = random.choice(("colour", "color"))
    return Question(
        question=f"What {spelling} is the {_mark_noun(chart, plural=False)} for {mark.label}?",
        answer=mark.colour,
        kind="colour",
        find_boxes=(mark.label_box,),
        copy_boxes=(mark.mark_box,),
    )


def _title(random: Random, chart: Chart) -> Question | None:
    if chart.title_box is None:
        return None
    question = random.choice(
        ("What is the title of the chart?", "What is the title of the chart?", "What is the title?", "Read the title.")
    )
    boxes = (chart.title_box,)
    return Question(question=question, answer=chart.title, kind="title", find_boxes=boxes, copy_boxes=boxes)


def _caption(random: Random, chart: Chart) -> Question | None:
    """Describe the chart in one sentence: kind, title, number of marks, lowest and highest."""
    if len(chart.spec.series_names) > 1 or not chart.values_printed:
        return None
    low, high = (choose(chart.marks, key=lambda mark: mark.number) for choose in (min, max))
    titled = f' titled "{chart.title}"' if chart.title else ""
    count = f"{len(chart.marks)} {_mark_noun(chart, plural=True)}"
    titles = (chart.title_box,) if chart.title_box else ()
    span = f"from {low.label} ({low.value}) to {high.label} ({high.value})"
    question = random.choice(
        ("Describe this image.", "Describe this image.", "Describe the chart.", "What does the chart show?")
    )
    return Question(
        question=question,
        answer=f"A {chart.kind} chart{titled} with {count}, {span}.",
        kind="caption",
        find_boxes=titles + tuple(mark.label_box for mark in chart.marks),
        copy_boxes=(*titles, low.label_box, low.value_box, high.label_box, high.value_box),
    )


_ASKERS = {
    "value": _value,
    "title": _title,
    "reverse": _reverse,
    "highest": lambda random, chart: _extreme(random, chart, "highest"),
    "lowest": lambda random, chart: _extreme(random, chart, "lowest"),
    "largest_value": lambda random, chart: _extreme(random, chart, "largest_value"),
    "smallest_value": lambda random, chart: _extreme(random, chart, "smallest_value"),
    "count": _count,
    "comparison": _comparison,
    "difference": _difference,
    "colour": _colour,
    "caption": _caption,
}
