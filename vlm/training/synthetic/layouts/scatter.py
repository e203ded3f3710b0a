"""Lay out points between two axes, each with its name beside it."""

import math

from vlm.training.synthetic.boxes import Box
from vlm.training.synthetic.canvas import DoesNotFit
from vlm.training.synthetic.layouts.sheet import Sheet, ValueAxis, ticks_between, value_axis


def lay_scatter(sheet: Sheet) -> None:
    """Lay out the values upwards, what `spec.across` holds to the right, and the names of both along their axes."""
    style, canvas, spec, gap, face = sheet.style, sheet.canvas, sheet.spec, sheet.gap, sheet.style.small_face
    axis = value_axis(sheet)
    ticks = ticks_between(min(spec.across), max(spec.across), with_zero=False)
    across = ValueAxis(ticks, [f"{tick:g}" for tick in ticks])
    sheet.left += max(map(face.width, axis.texts)) + gap
    drop = gap + face.cap_height / 2 + face.descent  # the ticks below stand lower than the lowest tick on the left
    base, top = sheet.bottom - 2 * face.line_height - drop - gap, sheet.top + face.line_height + 2 * gap
    length, width = base - top, sheet.right - face.width(across.texts[-1]) / 2 - sheet.left
    if length < 60 * style.scale or width < 80 * style.scale:
        raise DoesNotFit
    if style.plot_fill:
        canvas.shape("rectangle", (sheet.left, top, sheet.left + width, base), fill=style.plot_fill)
    for tick, text in zip(axis.ticks, axis.texts, strict=True):
        y = base - axis.fraction(tick) * length
        canvas.shape("line", ((sheet.left, y), (sheet.left + width, y)), fill=style.grid_colour or style.axis_colour)
        canvas.text(text, sheet.left - gap, y, face, style.faint_ink, 1.0, middle=True)
    for tick, text in zip(across.ticks, across.texts, strict=True):
        x = sheet.left + across.fraction(tick) * width
        canvas.shape("line", ((x, base), (x, base + gap)), fill=style.axis_colour)
        canvas.text(text, x, base + drop + face.ascent, face, style.faint_ink, 0.5)
    canvas.text(spec.topic, sheet.left, sheet.top + face.ascent, face, style.ink)
    canvas.text(spec.across_topic, sheet.left + width, sheet.bottom - face.descent, face, style.ink, 1.0)
    points = [
        (sheet.left + across.fraction(x) * width, base - axis.fraction(y) * length)
        for x, y in zip(spec.across, spec.numbers[0], strict=True)
    ]
    _place_points(sheet, points)


def _place_points(sheet: Sheet, points: list[tuple[float, float]]) -> None:
    radius = (2 + sheet.style.point_radius) * sheet.style.scale / 1.5
    for column, (x, y) in enumerate(points):
        dot = (x - radius, y - radius, x + radius, y + radius)
        if any(math.dist((x, y), other) < 3 * radius for other in points[:column]):
            raise DoesNotFit
        colour = sheet.colour(0, column)
        sheet.canvas.shape("ellipse", dot, fill=colour)
        sheet.canvas.keep_free(dot)
        half = radius + sheet.gap
        sheet.mark_boxes[0, column] = sheet.value_boxes[0, column] = (x - half, y - half, x + half, y + half)
    for column, (x, y) in enumerate(points):
        sheet.label_boxes[column] = _place_name(sheet, sheet.spec.labels[column], x, y, radius + sheet.gap)


def _place_name(sheet: Sheet, name: str, x: float, y: float, distance: float) -> Box:
    """Place a name right, left, above or below its point, whichever is free first."""
    face, ink = sheet.style.label_face, sheet.style.label_ink
    for align, down in ((0.0, 0), (1.0, 0), (0.5, -1), (0.5, 1)):
        at_x = x + (1 - 2 * align) * distance
        at_y = y + down * (distance + face.ascent / 2)
        try:
            return sheet.canvas.text(name, at_x, at_y, face, ink, align, middle=True)
        except DoesNotFit:
            continue
    raise DoesNotFit
