"""A chart as the table behind it, in the linear form of the literature: a row a line, cells between bars.

Source: Liu et al. 2022, "DePlot: One-shot visual language reasoning by plot-to-table translation" (section 3), which
writes " | " between cells and "<0x0A>", the byte of a line's end, between rows.
"""

from random import Random

from vlm.training.synthetic.questions.question import Question, has_several_series, label_word
from vlm.training.synthetic.renderer import Chart
from vlm.training.synthetic.spec import bare_number

CELL, ROW = " | ", "\n"
MAX_LENGTH = 120
"""In characters, each of which is a token; a reply may have 128."""


def table(random: Random, chart: Chart) -> Question | None:
    """Ask for the whole table of a small chart: a header, then a row a label, a column a series."""
    if not chart.values_printed or not chart.complete:
        return None
    rows: dict[str, list] = {}
    for mark in chart.marks:
        rows.setdefault(mark.label, []).append(mark)
    several = has_several_series(chart)
    head = [label_word(chart).capitalize(), *(chart.spec.series_names if several else ("Value",))]
    lines = [head, *([label, *(bare_number(mark.value) for mark in row)] for label, row in rows.items())]
    answer = ROW.join(CELL.join(cells) for cells in lines)
    if len(answer) > MAX_LENGTH:
        return None
    legend = tuple(dict.fromkeys(mark.series_box for mark in chart.marks)) if several else ()
    cells = tuple(box for row in rows.values() for box in (row[0].label_box, *(mark.value_box for mark in row)))
    question = random.choice(
        (
            "Convert the chart to a table.",
            "Convert this chart to a table.",
            "Write the chart as a table.",
            "What is the table behind the chart?",
            "Read all values as a table.",
        )
    )
    return Question(
        question=question, answer=answer, kind="table", find_boxes=legend + cells, copy_boxes=legend + cells
    )
