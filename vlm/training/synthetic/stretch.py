"""Charts shown larger, wider or narrower than they were drawn, print and all: a stretched face is a face never seen."""

import math
from dataclasses import replace

from PIL import Image

from vlm.training.synthetic.boxes import Box, Character, Strip, TurnedBox
from vlm.training.synthetic.renderer import Chart


def stretched(chart: Chart, size: tuple[int, int]) -> Chart:
    """Return a chart of `size` (height, width), with everything where it then stands."""
    height, width = size
    across, down = width / chart.image.width, height / chart.image.height

    def moved(box: Box | None) -> Box | None:
        return box and _stretched_box(box, across, down)

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
        image=chart.image.resize((width, height), Image.Resampling.LANCZOS),
        characters=tuple(Character(char, x * across, y * down) for char, x, y in chart.characters),
        title_box=moved(chart.title_box),
        marks=tuple(marks),
    )


def _stretched_box(box: Box, across: float, down: float) -> Box:
    if isinstance(box, TurnedBox):
        return TurnedBox(_stretched_strip(box.strip, across, down))
    x0, y0, x1, y1 = box
    return x0 * across, y0 * down, x1 * across, y1 * down


def _stretched_strip(strip: Strip, across: float, down: float) -> Strip:
    """Return the strip that has the middle of the stretched one and holds as much; that one's ends are not square."""
    right, up = strip.length * math.cos(strip.turn) * across, strip.length * math.sin(strip.turn) * down
    length = math.hypot(right, up)
    half_height = strip.half_height * strip.length * across * down / length
    return Strip(strip.x * across, strip.y * down, math.atan2(up, right), length, half_height)
