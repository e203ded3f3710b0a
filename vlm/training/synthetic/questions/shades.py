"""Questions by colour as people name them on publishers' charts: "the dark blue bar", and the largest of all of these.

Asked of charts to learn from alone: what the reader is measured with is drawn without them.
"""

import colorsys
from random import Random

from vlm.training.synthetic.canvas import Colour
from vlm.training.synthetic.questions.colours import UNCOLOURED, told_by_colour
from vlm.training.synthetic.questions.question import (
    Question,
    coloured_noun,
    extreme_of,
    has_several_series,
    label_word,
    mark_noun,
    number_text,
    value_of,
)
from vlm.training.synthetic.renderer import Chart, Mark

DARK, LIGHT = 0.42, 0.55
"""Lightness, of 1, from which on downwards a colour may be called dark, and upwards light."""
WITHOUT_DEPTH = ("black",)
LARGEST, SMALLEST = ("largest", "highest", "maximum", "peak"), ("smallest", "lowest", "minimum", "least")


def said(random: Random, shade: Colour, name: str) -> str:
    """Return what somebody calls a shade whose plain name is `name`: "blue", "dark blue", "navy blue"."""
    _, lightness, _ = colorsys.rgb_to_hls(*(part / 255 for part in shade))
    if name in WITHOUT_DEPTH or DARK < lightness < LIGHT or random.random() < 0.4:
        return name
    if lightness >= LIGHT:
        return f"light {name}"
    return "navy blue" if name == "blue" and random.random() < 0.3 else f"dark {name}"


def shade_name(random: Random, chart: Chart) -> Question | None:
    """Ask what a shade stands for: a series of the legend, or a label."""
    found = _told_by_shade(random, chart)
    if found is None:
        return None
    mark, shade = found
    several = mark.series_box is not None
    noun, word = coloured_noun(chart), "group" if several else label_word(chart)
    question = random.choice(
        (
            f"What does the {shade} {noun} represent?",
            f"What does the {shade} {random.choice(('color', 'colour', 'part'))} indicate?",
            f"Which {word} is represented by the {shade} {random.choice(('color', noun))}?",
            f"What does {shade} represent in the {random.choice(('graph', 'chart'))}?",
            f"What represents the {shade} {noun}?",
        )
    )
    box = mark.series_box if several else mark.label_box
    answer = mark.series if several else mark.label
    return Question(question=question, answer=answer, kind="shade_name", find_boxes=(box,), copy_boxes=(box,))


def shade_value(random: Random, chart: Chart) -> Question | None:
    """Ask for the value of a bar told by its shade, and by its label where there are several series."""
    found = _told_by_shade(random, chart)
    if found is None or not chart.values_printed:
        return None
    mark, shade = found
    noun, several = coloured_noun(chart), mark.series_box is not None
    where = f" in {mark.label}" if several else ""
    question = random.choice(
        (
            f"What is the value of the {shade} {noun}{where}?",
            f"What's the value of {shade} {noun}{where}?",
            f"How much is shown in {shade}{where}?",
        )
    )
    return value_of(mark, question, "shade_value", (mark.series_box,) if several else ())


def shade_extreme(random: Random, chart: Chart) -> Question | None:
    """Ask for the largest or smallest value of all bars of a shade, or for the sum or difference of both."""
    found = _told_by_shade(random, chart)
    if found is None or not has_several_series(chart) or not (chart.values_printed and chart.complete):
        return None
    one, shade = found
    marks = [mark for mark in chart.marks if mark.series == one.series]
    high, low = (extreme_of(chart, marks, is_high) for is_high in (True, False))
    if high is None or low is None:
        return None
    noun, most, least = coloured_noun(chart), random.choice(LARGEST), random.choice(SMALLEST)
    if random.random() < 0.25:
        kind = random.choice(("sum", "difference"))
        number = high.number + low.number if kind == "sum" else high.number - low.number
        of = "of" if kind == "sum" else "between"
        return Question(
            question=f"What is the {kind} {of} the {most} value and the {least} value of the {shade} {noun}?",
            answer=number_text(number, chart.spec.format.decimals),
            kind="shade_calculation",
            find_boxes=(low.label_box, high.label_box),
            copy_boxes=(low.value_box, high.value_box),
            worked_out=True,
        )
    mark, word = random.choice(((high, most), (low, least)))
    question = random.choice(
        (
            f"What is the {word} value of the {shade} {noun}?",
            f"What is the {word} value in {shade} {noun}?",
            f"What was the {word} {shade} {noun} value?",
            f"What's the {word} value of {shade} {mark_noun(chart, plural=False)}?",
        )
    )
    return value_of(mark, question, "shade_extreme", (mark.series_box,))


def only_colour(random: Random, chart: Chart) -> Question | None:
    """Ask for the colour of all bars, where they share one."""
    names = {mark.colour for mark in chart.marks}
    if len(names) > 1 or chart.kind in ("pie", *UNCOLOURED):
        return None
    noun, colour = coloured_noun(chart), random.choice(("color", "colour"))
    question = random.choice(
        (
            f"What is the {colour} of {'the line' if noun == 'line' else f'all the {noun}s'}?",
            f"Which {colour} is used in the {random.choice(('graph', 'chart'))}?",
            f"What {colour} is used to show the values?",
        )
    )
    boxes = tuple(mark.mark_box for mark in chart.marks)
    return Question(
        question=question,
        answer=names.pop(),
        kind="only_colour",
        find_boxes=boxes,
        copy_boxes=boxes,
        worked_out=True,
    )


def _told_by_shade(random: Random, chart: Chart) -> tuple[Mark, str] | None:
    """Draw a mark whose colour's name is its own, and what its shade is called."""
    mark = told_by_colour(random, chart)
    return mark and (mark, said(random, mark.shade, mark.colour))
