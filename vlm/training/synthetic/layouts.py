"""Lay out the bars, lines and slices of a chart in the area that its header leaves free."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from vlm.training.synthetic.canvas import Box, Canvas, Colour, DoesNotFit, wrap
from vlm.training.synthetic.spec import ChartSpec, NumberFormat
from vlm.training.synthetic.style import Style


@dataclass
class Sheet:
    """A layout under way: the canvas, the area still free, and what has been placed."""

    canvas: Canvas
    spec: ChartSpec
    style: Style
    left: float
    top: float
    right: float
    bottom: float
    title_box: Box | None = None
    label_boxes: dict[int, Box] = field(default_factory=dict)
    value_boxes: dict[tuple[int, int], Box] = field(default_factory=dict)
    mark_boxes: dict[tuple[int, int], Box] = field(default_factory=dict)
    series_boxes: dict[int, Box] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        return 3 * self.style.scale

    def colour(self, row: int, column: int) -> Colour:
        by_label = self.style.colours_by_label and len(self.spec.series_names) == 1
        return self.style.colours[column if by_label or self.style.kind == "pie" else row]


def _ticks(high: float, low: float = 0.0) -> list[float]:
    """Return three to seven round numbers from `low` to at least `high`."""
    step = 10.0**-6
    for factor in (1, 2, 2.5, 5) * 14:
        if factor == 1:
            step *= 10
        if (high - low) / (step * factor) <= 5:
            num_steps = int(-(-(high - low) // (step * factor)))
            return [low + i * step * factor for i in range(num_steps + 1)]
    return [low, high]


def _tick_text(number: float, step: float, number_format: NumberFormat, bare: bool) -> str:
    decimals = 0 if step % 1 == 0 else 1 if step * 10 % 1 < 1e-6 else 2
    text = f"{number:,.{decimals}f}".replace(",", number_format.thousands)
    return text if bare else f"{number_format.prefix}{text}{number_format.suffix}"


def _value_axis(sheet: Sheet) -> tuple[list[float], list[str]]:
    """Return ticks and their texts; the last tick is the end of the axis."""
    tallest = max(map(sum, zip(*sheet.spec.numbers, strict=True))) if sheet.style.stacked else None
    ticks = _ticks((tallest or max(max(row) for row in sheet.spec.numbers)) * sheet.style.headroom)
    texts = [_tick_text(tick, ticks[1], sheet.spec.format, sheet.style.bare_ticks) for tick in ticks]
    return ticks, texts


def _lay_upright(sheet: Sheet) -> None:
    """Lay out vertical bars or a line: labels below, values above, ticks on the left."""
    style, canvas, spec, gap = sheet.style, sheet.canvas, sheet.spec, sheet.gap
    ticks, tick_texts = _value_axis(sheet)
    if style.ticks_printed:
        sheet.left += max(style.small_face.width(text) for text in tick_texts) + gap
    slot = (sheet.right - sheet.left) / len(spec.labels)
    wrapped = [wrap(label, style.label_face, slot - 2 * style.scale, 2) for label in spec.labels]
    spacing = style.label_face.line_height
    base = sheet.bottom - max(map(len, wrapped)) * spacing - gap
    top = sheet.top + (style.value_face.line_height if style.values_printed else 0) + gap
    if base - top < 45 * style.scale:
        raise DoesNotFit
    heights = [base - tick / ticks[-1] * (base - top) for tick in ticks]
    for column in range(0, len(spec.labels), 2) if style.banded else ():
        x = sheet.left + column * slot
        canvas.shape("rectangle", (x, top, x + slot, base), fill=(249, 249, 249))
    _draw_grid(sheet, [((sheet.left, y), (sheet.right, y)) for y in heights])
    for column, lines in enumerate(wrapped):
        x = sheet.left + (column + 0.5) * slot
        first = base + gap + style.label_face.ascent
        sheet.label_boxes[column] = canvas.lines(lines, x, first, style.label_face, style.label_ink, 0.5, spacing)
    if style.ticks_printed:
        for y, text in zip(heights, tick_texts, strict=True):
            canvas.text(text, sheet.left - gap, y, style.small_face, style.faint_ink, 1.0, middle=True)
    place = _place_line if style.kind == "line" else _place_stacks if style.stacked else _place_upright_bars
    place(sheet, slot, base, (base - top) / ticks[-1])
    canvas.shape("line", ((sheet.left, base), (sheet.right, base)), fill=style.axis_colour, width=style.axis_width)


def _draw_grid(sheet: Sheet, lines: list[tuple]) -> None:
    """Draw grid lines across the ticks, and the frame of spreadsheet looks."""
    if sheet.style.grid_colour:
        for line in lines:
            sheet.canvas.shape("line", line, fill=sheet.style.grid_colour)
    crossed = sheet.style.kind == "horizontal bar" and sheet.style.values_printed and not sheet.style.values_inside
    if sheet.style.framed and not crossed:
        (x0, y0), (x1, y1) = lines[0][0], lines[-1][1]
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        sheet.canvas.shape("rectangle", box, outline=sheet.style.axis_colour)


def _place_upright_bars(sheet: Sheet, slot: float, base: float, pixels_per_unit: float) -> None:
    spec, style, gap = sheet.spec, sheet.style, sheet.gap
    num_rows = len(spec.series_names)
    bar = slot * style.bar_share / num_rows
    for row, numbers in enumerate(spec.numbers):
        for column, number in enumerate(numbers):
            x0 = sheet.left + (column + 0.5) * slot + (row - num_rows / 2) * bar
            y = base - max(number * pixels_per_unit, 1)
            sheet.mark_boxes[row, column] = box = (x0, y, x0 + bar - (num_rows > 1), base)
            colour = sheet.colour(row, column)
            sheet.canvas.shape("rectangle", box, fill=colour, outline=style.outline)
            if not style.values_printed:
                sheet.value_boxes[row, column] = (x0, y - 4 * style.scale, x0 + bar, y + 8 * style.scale)
                continue
            text, face = spec.printed[row][column], style.value_face
            if num_rows > 1 and face.width(text) > bar + 2 * style.scale:
                raise DoesNotFit  # it would stand on the next bar
            inside = style.values_inside and base - y > face.ascent + 3 * gap and face.width(text) < bar - gap
            baseline = y + gap + face.ascent if inside else y - gap
            ink = _ink_on(colour) if inside else style.value_ink
            sheet.value_boxes[row, column] = sheet.canvas.text(text, x0 + bar / 2, baseline, face, ink, 0.5)


def _place_stacks(sheet: Sheet, slot: float, base: float, pixels_per_unit: float) -> None:
    """Place the bars of all series on top of one another, each value in the middle of its bar."""
    spec, style, face = sheet.spec, sheet.style, sheet.style.value_face
    bar = slot * style.bar_share
    for column in range(len(spec.labels)):
        y = base
        for row, numbers in enumerate(spec.numbers):
            x0, y0 = sheet.left + (column + 0.5) * slot - bar / 2, y - numbers[column] * pixels_per_unit
            sheet.mark_boxes[row, column] = sheet.value_boxes[row, column] = box = (x0, y0, x0 + bar, y)
            sheet.canvas.shape("rectangle", box, fill=style.colours[row], outline=style.background)
            if style.values_printed:
                text = spec.printed[row][column]
                if face.width(text) > slot - 2 or face.line_height > y - y0:
                    raise DoesNotFit
                place = (x0 + bar / 2, (y0 + y) / 2, face, _ink_on(style.colours[row]), 0.5)
                sheet.value_boxes[row, column] = sheet.canvas.text(text, *place, middle=True)
            y = y0


def _place_line(sheet: Sheet, slot: float, base: float, pixels_per_unit: float) -> None:
    """Place lines with points, each value above its point or, in a valley, below it."""
    spec, style, gap = sheet.spec, sheet.style, sheet.gap
    for row, numbers in enumerate(spec.numbers):
        xs = [sheet.left + (column + 0.5) * slot for column in range(len(numbers))]
        points = [(x, base - number * pixels_per_unit) for x, number in zip(xs, numbers, strict=True)]
        colour, radius = style.colours[row], style.point_radius * style.scale
        sheet.canvas.shape("line", points, fill=colour, width=style.line_width, joint="curve")
        for column, (x, y) in enumerate(points):
            sheet.mark_boxes[row, column] = (x - 3 * gap, y - 3 * gap, x + 3 * gap, y + 3 * gap)
            sheet.canvas.shape("ellipse", (x - radius, y - radius, x + radius, y + radius), fill=colour)
            sheet.value_boxes[row, column] = sheet.mark_boxes[row, column]
            if style.values_printed:
                neighbours = [numbers[i] for i in (column - 1, column + 1) if 0 <= i < len(numbers)]
                below = min(neighbours) > numbers[column] and base - y > 2 * style.value_face.line_height
                offset = radius + gap + style.value_face.ascent if below else -radius - gap
                sheet.value_boxes[row, column] = sheet.canvas.text(
                    spec.printed[row][column], x, y + offset, style.value_face, style.value_ink, 0.5
                )


def _lay_sideways(sheet: Sheet) -> None:
    """Lay out horizontal bars: labels on the left, values at the ends of the bars, ticks below."""
    style, canvas, spec, gap = sheet.style, sheet.canvas, sheet.spec, sheet.gap
    width = sheet.right - sheet.left
    face, spacing = style.label_face, style.label_face.line_height
    wrapped = [wrap(label, face, 0.42 * width, 2) for label in spec.labels]
    plot = sheet.left + max(face.width(line) for lines in wrapped for line in lines) + gap
    ticks, tick_texts = _value_axis(sheet)
    base = sheet.bottom - (style.small_face.line_height + gap if style.ticks_printed else 0)
    slot = (base - sheet.top) / len(spec.labels)
    num_rows = len(spec.series_names)
    num_lines = 1 if style.stacked else num_rows
    if slot < max(max(map(len, wrapped)) * spacing, num_lines * style.value_face.line_height) + 1:
        raise DoesNotFit
    slot = min(slot, style.max_slot * style.scale * (1 if style.stacked else num_rows))
    base = sheet.top + slot * len(spec.labels)
    widest = max(style.value_face.width(text) for row in spec.printed for text in row) if style.values_printed else 0
    end = sheet.right - (0 if style.values_inside else widest + gap) - gap
    if end - plot < 50 * style.scale:
        raise DoesNotFit
    across = [plot + tick / ticks[-1] * (end - plot) for tick in ticks]
    _draw_grid(sheet, [((x, sheet.top), (x, base)) for x in across])
    for column, lines in enumerate(wrapped):
        y = sheet.top + (column + 0.5) * slot
        first = y + face.cap_height / 2 - (len(lines) - 1) * spacing / 2
        x = sheet.left if style.labels_left else plot - gap
        align = 0.0 if style.labels_left else 1.0
        sheet.label_boxes[column] = canvas.lines(lines, x, first, face, style.label_ink, align, spacing)
    if style.ticks_printed:
        for x, text in zip(across, tick_texts, strict=True):
            y = base + gap + style.small_face.ascent
            canvas.text(text, x, y, style.small_face, style.faint_ink, 0.5)
    place = _place_sideways_stacks if style.stacked else _place_sideways_bars
    place(sheet, plot, slot, (end - plot) / ticks[-1])
    if style.axis_width:
        canvas.shape("line", ((plot, sheet.top), (plot, base)), fill=style.axis_colour, width=style.axis_width)


def _place_sideways_bars(sheet: Sheet, plot: float, slot: float, pixels_per_unit: float) -> None:
    spec, style, gap, face = sheet.spec, sheet.style, sheet.gap, sheet.style.value_face
    num_rows = len(spec.series_names)
    bar = slot * style.bar_share / num_rows
    for row, numbers in enumerate(spec.numbers):
        for column, number in enumerate(numbers):
            y0 = sheet.top + (column + 0.5) * slot + (row - num_rows / 2) * bar
            x = plot + max(number * pixels_per_unit, 1)
            sheet.mark_boxes[row, column] = box = (plot, y0, x, y0 + bar - (num_rows > 1))
            colour = sheet.colour(row, column)
            sheet.canvas.shape("rectangle", box, fill=colour, outline=style.outline)
            if not style.values_printed:
                sheet.value_boxes[row, column] = (x - 8 * style.scale, y0, x + 4 * style.scale, y0 + bar)
                continue
            text = spec.printed[row][column]
            inside = style.values_inside and x - plot > face.width(text) + 2 * gap and bar > face.cap_height + 3
            at = x - gap if inside else x + gap
            ink = _ink_on(colour) if inside else style.value_ink
            sheet.value_boxes[row, column] = sheet.canvas.text(
                text, at, y0 + bar / 2, face, ink, float(inside), middle=True
            )


def _place_sideways_stacks(sheet: Sheet, plot: float, slot: float, pixels_per_unit: float) -> None:
    """Place the bars of all series one behind the other, each value in the middle of its bar."""
    spec, style, face = sheet.spec, sheet.style, sheet.style.value_face
    bar = slot * style.bar_share
    for column in range(len(spec.labels)):
        x, y0 = plot, sheet.top + (column + 0.5) * slot - bar / 2
        for row, numbers in enumerate(spec.numbers):
            x1 = x + numbers[column] * pixels_per_unit
            sheet.mark_boxes[row, column] = sheet.value_boxes[row, column] = box = (x, y0, x1, y0 + bar)
            sheet.canvas.shape("rectangle", box, fill=style.colours[row], outline=style.background)
            if style.values_printed:
                text = spec.printed[row][column]
                if face.width(text) > x1 - x - 1:
                    raise DoesNotFit
                place = ((x + x1) / 2, y0 + bar / 2, face, _ink_on(style.colours[row]), 0.5)
                sheet.value_boxes[row, column] = sheet.canvas.text(text, *place, middle=True)
            x = x1


def _lay_pie(sheet: Sheet) -> None:
    """Lay out a pie or ring whose slices have their label and value beside them."""
    style, canvas, spec = sheet.style, sheet.canvas, sheet.spec
    face, spacing = style.label_face, style.label_face.line_height
    numbers = spec.numbers[0]
    total = sum(numbers)
    if len(numbers) > 6 or min(numbers) / total < 0.04:
        raise DoesNotFit
    cx, cy = (sheet.left + sheet.right) / 2, (sheet.top + sheet.bottom) / 2
    widest = max(face.width(text) for text in (*spec.labels, *spec.printed[0]))
    radius = min((sheet.right - sheet.left) / 2 - widest - sheet.gap, (sheet.bottom - sheet.top) / 2 - 2.2 * spacing)
    if radius < 28 * style.scale:
        raise DoesNotFit
    angle = style.first_angle
    for column, number in enumerate(numbers):
        sweep = 360 * number / total
        disc = (cx - radius, cy - radius, cx + radius, cy + radius)
        canvas.shape(
            "pieslice", disc, start=angle, end=angle + sweep, fill=style.colours[column], outline=style.background
        )
        turn = math.radians(angle + sweep / 2)
        x, y = cx + math.cos(turn) * (radius + sheet.gap), cy + math.sin(turn) * (radius + 1.2 * spacing)
        align = min(max(0.5 - 0.9 * math.cos(turn), 0.0), 1.0)
        sheet.label_boxes[column] = canvas.text(spec.labels[column], x, y - sheet.gap, face, style.label_ink, align)
        sheet.value_boxes[0, column] = canvas.text(
            spec.printed[0][column], x, y - sheet.gap + spacing, style.value_face, style.value_ink, align
        )
        mx, my, half = cx + math.cos(turn) * radius * 0.7, cy + math.sin(turn) * radius * 0.7, radius * 0.2
        sheet.mark_boxes[0, column] = (mx - half, my - half, mx + half, my + half)
        angle += sweep
    if style.ring:
        hole = radius * 0.5
        canvas.shape("ellipse", (cx - hole, cy - hole, cx + hole, cy + hole), fill=style.background)


def _ink_on(colour: Colour) -> Colour:
    """Return white or near-black, whichever can be read on `colour`."""
    return (255, 255, 255) if colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11 < 140 else (20, 20, 20)


LAYOUTS: dict[str, Callable[[Sheet], None]] = {
    "bar": _lay_upright,
    "line": _lay_upright,
    "horizontal bar": _lay_sideways,
    "pie": _lay_pie,
}
