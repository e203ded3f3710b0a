"""Questions whose answer is printed beside what they name: values of labels, labels of values, titles."""

import re
from random import Random

from vlm.training.synthetic.questions.question import Question, label_word
from vlm.training.synthetic.questions.wording import instructed
from vlm.training.synthetic.renderer import Chart
from vlm.training.synthetic.spec import bare_number
from vlm.training.synthetic.words import YEARS, words

IN_WHICH = {"year": "In which", "month": "In which", "quarter": "In which", "day": "On which"}


def value(random: Random, chart: Chart) -> Question | None:
    if not chart.values_printed:
        return None
    mark = random.choice(chart.marks)
    templates = _value_templates(chart)
    topic = _wordy_topic(random, chart) if random.random() < 0.4 else chart.spec.topic
    question = random.choice(templates).format(label=mark.label, topic=topic, series=mark.series)
    if random.random() < 0.1:
        question = instructed(random, question)
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
    at = {"year": "in", "month": "in", "quarter": "in", "day": "on", "country": "in", "place": "in"}
    when = f"{at.get(spec.label_kind, 'for')} {{label}}"
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
    # A series may be a country or a year as well.
    is_told = re.search(r"\d\d", shown) if kind == "year" else {*words(kind, spec.split)} & {*spec.series_names}
    if other in shown or spec.label_kind == kind or is_told:
        return topic
    where = {"company": (f"{other}'s {topic}", f"{topic} of {other}"), "product": (f"{other.lower()} {topic}",)}
    return random.choice(where.get(kind, (f"{topic} in {other}",)))


def reverse(random: Random, chart: Chart) -> Question | None:
    mark = random.choice(chart.marks)
    same = [other for other in chart.marks if bare_number(other.value) == bare_number(mark.value)]
    if not chart.values_printed or len(same) > 1:
        return None
    kind = label_word(chart)
    value = random.choice((mark.value, bare_number(mark.value)))
    question = random.choice(
        (
            f"Which {kind} has the value {value}?",
            f"Which {kind} has {value}?",
            f"What {kind} has a value of {value}?",
            f"{IN_WHICH.get(kind, 'Which')} {kind} was the value {value}?",
        )
    )
    return Question(
        question=question,
        answer=mark.label,
        kind="reverse",
        find_boxes=(mark.value_box,),
        copy_boxes=(mark.label_box,),
    )


def title(random: Random, chart: Chart) -> Question | None:
    if chart.title_box is None:
        return None
    question = random.choice(
        ("What is the title of the chart?", "What is the title of the chart?", "What is the title?", "Read the title.")
    )
    boxes = (chart.title_box,)
    return Question(question=question, answer=chart.title, kind="title", find_boxes=boxes, copy_boxes=boxes)
