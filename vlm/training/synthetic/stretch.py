"""Charts shown wider or narrower than they were drawn, print and all: a stretched face is a face never seen."""

import math
from dataclasses import replace

from PIL import Image

from vlm.training.synthetic.boxes import Box, Strip, TurnedBox
from vlm.training.synthetic.renderer import Chart


def stretched(chart: Chart, width: int) -> Chart:
    """Return a chart as wide as asked for and as high as it was, with everything where it then stands."""
    factor = width / chart.image.width

    def moved(box: Box | None) -> Box | None:
        return box and _stretched_box(box, factor)

    marks = [
        replace(
            mark,
            label_box=moved(mark.label_box),
            value_box=moved(mark.value_box),
            mark_box=moved(mark.mark_box),
            series_box=moved(mark.series_box),
        )
        for mark in chart.marks
    ]
    return replace(
        chart,
        image=chart.image.resize((width, chart.image.height), Image.Resampling.LANCZOS),
        characters=tuple(character._replace(x=character.x * factor) for character in chart.characters),
        title_box=moved(chart.title_box),
        marks=tuple(marks),
    )


def _stretched_box(box: Box, factor: float) -> Box:
    if isinstance(box, TurnedBox):
        return TurnedBox(_stretched_strip(box.strip, factor))
    x0, y0, x1, y1 = box
    return x0 * factor, y0, x1 * factor, y1


def _stretched_strip(strip: Strip, factor: float) -> Strip:
    """Return the strip that has the middle of the stretched one and holds as much; that one's ends are not square."""
    across, up = strip.length * math.cos(strip.turn) * factor, strip.length * math.sin(strip.turn)
    length = math.hypot(across, up)
    half_height = strip.half_height * strip.length * factor / length
    return Strip(strip.x * factor, strip.y, math.atan2(up, across), length, half_height)
