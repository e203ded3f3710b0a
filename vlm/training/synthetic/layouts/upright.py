"""Lay out vertical bars, lines and areas: labels below, values above, ticks on the left."""

import math

from vlm.training.synthetic.canvas import DoesNotFit, wrap
from vlm.training.synthetic.layouts.area import place_areas
from vlm.training.synthetic.layouts.ends import place_end_names
from vlm.training.synthetic.layouts.sheet import Sheet, ValueAxis, draw_grid, ink_on, value_axis


def lay_upright(sheet: Sheet) -> None:
    """Lay out bars, lines or areas over their labels."""
    style, canvas, spec, gap = sheet.style, sheet.canvas, sheet.spec, sheet.gap
    axis = value_axis(sheet)
    if style.ticks_printed:
        sheet.left += max(style.small_face.width(text) for text in axis.texts) + gap
    if style.legend == "ends" and not style.end_tags:
        sheet.right -= max(map(style.label_face.width, spec.series_names)) + 3 * gap
    if style.label_angle > 0:
        sheet.left = max(sheet.left, _overhang(sheet))
    slot = (sheet.right - sheet.left) / len(spec.labels)
    xs = _places(sheet, slot)
    label_lines = _label_lines(sheet, xs, slot)
    base = sheet.bottom - _label_depth(sheet, label_lines) - _label_gap(sheet)
    top = sheet.top + (style.value_face.line_height if style.values_printed else 0) + gap
    if base - top < 45 * style.scale:
        raise DoesNotFit
    heights = [base - axis.fraction(tick) * (base - top) for tick in axis.ticks]
    if style.plot_fill:
        canvas.shape("rectangle", (sheet.left, top, sheet.right, base), fill=style.plot_fill)
    for column in range(0, len(spec.labels), 2) if style.banded else ():
        x = sheet.left + column * slot
        canvas.shape("rectangle", (x, top, x + slot, base), fill=(249, 249, 249))
    draw_grid(sheet, [((sheet.left, y), (sheet.right, y)) for y in heights])
    _place_labels(sheet, xs, base, label_lines)
    if style.ticks_printed:
        for y, text in zip(heights, axis.texts, strict=True):
            canvas.text(text, sheet.left - gap, y, style.small_face, style.faint_ink, 1.0, middle=True)
    foot = base - axis.fraction(axis.origin) * (base - top)
    if style.kind == "area":
        place_areas(sheet, xs, foot, base - top, axis)
    elif style.kind == "line":
        _place_line(sheet, xs, foot, base - top, axis)
    else:
        place = _place_stacks if style.stacked else _place_upright_bars
        place(sheet, xs, slot, foot, base - top, axis)
    canvas.shape("line", ((sheet.left, foot), (sheet.right, foot)), fill=style.axis_colour, width=style.axis_width)


def _places(sheet: Sheet, slot: float) -> list[float]:
    """Return the x of each label: in the middle of its slot, or as years lie on a scale from edge to edge."""
    if not sheet.style.edge_to_edge:
        return [sheet.left + (column + 0.5) * slot for column in range(len(sheet.spec.labels))]
    labels = sheet.spec.labels
    years = [int(label) for label in labels] if sheet.spec.label_kind == "year" else list(range(len(labels)))
    half = sheet.style.label_face.width(labels[-1]) / 2
    # A last label may stick out below the names of series, not beyond the edge of the sheet.
    margin = 2.5 * sheet.gap if sheet.style.legend == "ends" or sheet.style.label_angle else half
    per_year = (sheet.right - sheet.left - 2 * margin) / (years[-1] - years[0])
    return [sheet.left + margin + (year - years[0]) * per_year for year in years]


def _label_lines(sheet: Sheet, xs: list[float], slot: float) -> dict[int, list[str]]:
    """Return the lines of each label that is printed: all of them, or with thinned labels those with room for them."""
    labels, face, scale = sheet.spec.labels, sheet.style.label_face, sheet.style.scale
    if sheet.style.label_angle:
        return {column: [label] for column, label in enumerate(labels)}
    if not sheet.style.thinned_labels:
        return {column: wrap(label, face, slot - 2 * scale, 2) for column, label in enumerate(labels)}
    half = max(map(face.width, labels)) / 2 + 2 * scale
    every = max(sheet.style.thinned_labels, math.ceil(2 * half * (len(xs) - 1) / (xs[-1] - xs[0])))
    # The first and the last always, and those between that do not touch the last.
    shown = [column for column in range(0, len(xs), every) if column == 0 or xs[column] + 2 * half < xs[-1]]
    return {column: [labels[column]] for column in (*shown, len(xs) - 1)}


def _overhang(sheet: Sheet) -> float:
    """Return how far from the sheet's left edge the plot must begin for the turned labels to end below their bars."""
    spec, style = sheet.spec, sheet.style
    turn, needed = math.radians(style.label_angle), 0.0
    for column, label in enumerate(spec.labels):
        share = (column + 0.5) / len(spec.labels)
        reach = style.label_face.width(label) * math.cos(turn) + style.label_face.ascent
        needed = max(needed, (reach - share * sheet.right) / (1 - share))
    return needed


def _label_depth(sheet: Sheet, label_lines: dict[int, list[str]]) -> float:
    """Return how many pixels the labels take below the plot."""
    face, turn = sheet.style.label_face, math.radians(abs(sheet.style.label_angle))
    if not turn:
        return max(map(len, label_lines.values())) * face.line_height
    widest = max(map(face.width, sheet.spec.labels))
    return widest * math.sin(turn) + face.line_height * math.cos(turn) + sheet.gap


def _label_gap(sheet: Sheet) -> float:
    """Return how far below the plot labels begin: where the first is near the axis, below the lowest tick's text."""
    face = sheet.style.small_face
    return sheet.gap + (face.cap_height / 2 + face.descent if sheet.style.edge_to_edge else 0)


def _place_labels(sheet: Sheet, xs: list[float], base: float, label_lines: dict[int, list[str]]) -> None:
    style, face, gap = sheet.style, sheet.style.label_face, _label_gap(sheet)
    for column, lines in label_lines.items():
        if style.label_angle:
            y = base + gap + face.cap_height / 2
            sheet.label_boxes[column] = sheet.canvas.turned_text(
                lines[0], xs[column], y, face, style.label_ink, style.label_angle
            )
            continue
        first = base + gap + face.ascent
        sheet.label_boxes[column] = sheet.canvas.lines(
            lines, xs[column], first, face, style.label_ink, 0.5, face.line_height
        )


def _place_upright_bars(
    sheet: Sheet, xs: list[float], slot: float, foot: float, length: float, axis: ValueAxis
) -> None:
    spec, style, gap = sheet.spec, sheet.style, sheet.gap
    num_rows = len(spec.series_names)
    bar = slot * style.bar_share / num_rows
    for row, numbers in enumerate(spec.numbers):
        for column, number in enumerate(numbers):
            x0 = xs[column] + (row - num_rows / 2) * bar
            reach = axis.reach(number, length)
            y = foot - max(reach, 1) if number >= 0 else foot - min(reach, -1)
            sheet.mark_boxes[row, column] = box = (x0, min(y, foot), x0 + bar - (num_rows > 1), max(y, foot))
            colour = sheet.colour(row, column)
            sheet.canvas.shape("rectangle", box, fill=colour, outline=style.outline)
            if not style.values_printed:
                sheet.value_boxes[row, column] = (x0, y - 4 * style.scale, x0 + bar, y + 8 * style.scale)
                continue
            text, face = spec.printed[row][column], style.value_face
            if num_rows > 1 and face.width(text) > bar + 2 * style.scale:
                raise DoesNotFit  # it would stand on the next bar
            inside = style.values_inside and foot - y > face.ascent + 3 * gap and face.width(text) < bar - gap
            baseline = y + gap + face.ascent if inside or number < 0 else y - gap
            ink = ink_on(colour) if inside else style.value_ink
            sheet.value_boxes[row, column] = sheet.canvas.text(text, x0 + bar / 2, baseline, face, ink, 0.5)


def _place_stacks(sheet: Sheet, xs: list[float], slot: float, foot: float, length: float, axis: ValueAxis) -> None:
    """Place the bars of all series on top of one another, each value in the middle of its bar."""
    spec, style, face = sheet.spec, sheet.style, sheet.style.value_face
    bar = slot * style.bar_share
    for column in range(len(spec.labels)):
        y = foot
        for row, numbers in enumerate(spec.numbers):
            x0, y0 = xs[column] - bar / 2, y - axis.reach(numbers[column], length)
            sheet.mark_boxes[row, column] = sheet.value_boxes[row, column] = box = (x0, y0, x0 + bar, y)
            sheet.canvas.shape("rectangle", box, fill=style.colours[row], outline=style.background)
            if style.values_printed:
                text = spec.printed[row][column]
                if face.width(text) > slot - 2 or face.line_height > y - y0:
                    raise DoesNotFit
                place = (x0 + bar / 2, (y0 + y) / 2, face, ink_on(style.colours[row]), 0.5)
                sheet.value_boxes[row, column] = sheet.canvas.text(text, *place, middle=True)
            y = y0


def _place_line(sheet: Sheet, xs: list[float], foot: float, length: float, axis: ValueAxis) -> None:
    """Place lines with points, each value above its point or, in a valley, below it."""
    spec, style, gap = sheet.spec, sheet.style, sheet.gap
    ends = []
    for row, numbers in enumerate(spec.numbers):
        points = [(x, foot - axis.reach(number, length)) for x, number in zip(xs, numbers, strict=True)]
        colour, radius = style.colours[row], style.point_radius * style.scale
        sheet.canvas.shape("line", points, fill=colour, width=style.line_width, joint="curve")
        ends.append(points[-1])
        for column, (x, y) in enumerate(points):
            sheet.mark_boxes[row, column] = (x - 3 * gap, y - 3 * gap, x + 3 * gap, y + 3 * gap)
            sheet.canvas.shape("ellipse", (x - radius, y - radius, x + radius, y + radius), fill=colour)
            if not style.values_printed:
                sheet.value_boxes[row, column] = sheet.mark_boxes[row, column]
            elif not style.values_at_ends or column in (0, len(points) - 1):
                neighbours = [numbers[i] for i in (column - 1, column + 1) if 0 <= i < len(numbers)]
                free = numbers[column] < 0 or foot - y > 2 * style.value_face.line_height
                below = free and min(neighbours) > numbers[column]
                offset = radius + gap + style.value_face.ascent if below else -radius - gap
                ink = colour if style.values_at_ends else style.value_ink
                sheet.value_boxes[row, column] = sheet.canvas.text(
                    spec.printed[row][column], x, y + offset, style.value_face, ink, 0.5
                )
    if style.legend == "ends":
        place_end_names(sheet, ends)
