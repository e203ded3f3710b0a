"""Lay out horizontal bars: labels on the left, values at the ends of the bars, ticks below."""

from vlm.training.synthetic.canvas import DoesNotFit, wrap
from vlm.training.synthetic.layouts.sheet import Sheet, ValueAxis, draw_grid, ink_on, value_axis


def lay_sideways(sheet: Sheet) -> None:
    """Lay out horizontal bars: labels on the left, values at the ends of the bars, ticks below."""
    style, canvas, spec, gap = sheet.style, sheet.canvas, sheet.spec, sheet.gap
    width = sheet.right - sheet.left
    face, spacing = style.label_face, style.label_face.line_height
    wrapped = [wrap(label, face, 0.42 * width, 2) for label in spec.labels]
    plot = sheet.left + max(face.width(line) for lines in wrapped for line in lines) + gap
    labels_end = plot - gap
    axis = value_axis(sheet)
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
    if axis.ticks[0] < 0:
        plot += widest + gap  # the values of negative bars stand left of them
    if end - plot < 50 * style.scale:
        raise DoesNotFit
    across = [plot + axis.fraction(tick) * (end - plot) for tick in axis.ticks]
    foot = plot + axis.fraction(axis.origin) * (end - plot)
    draw_grid(sheet, [((x, sheet.top), (x, base)) for x in across])
    for column, lines in enumerate(wrapped):
        y = sheet.top + (column + 0.5) * slot
        first = y + face.cap_height / 2 - (len(lines) - 1) * spacing / 2
        x = sheet.left if style.labels_left else labels_end
        align = 0.0 if style.labels_left else 1.0
        sheet.label_boxes[column] = canvas.lines(lines, x, first, face, style.label_ink, align, spacing)
    if style.ticks_printed:
        for x, text in zip(across, axis.texts, strict=True):
            y = base + gap + style.small_face.ascent
            canvas.text(text, x, y, style.small_face, style.faint_ink, 0.5)
    place = _place_sideways_stacks if style.stacked else _place_sideways_bars
    place(sheet, foot, slot, end - plot, axis)
    if style.axis_width:
        canvas.shape("line", ((foot, sheet.top), (foot, base)), fill=style.axis_colour, width=style.axis_width)


def _place_sideways_bars(sheet: Sheet, foot: float, slot: float, length: float, axis: ValueAxis) -> None:
    spec, style, gap, face = sheet.spec, sheet.style, sheet.gap, sheet.style.value_face
    num_rows = len(spec.series_names)
    bar = slot * style.bar_share / num_rows
    for row, numbers in enumerate(spec.numbers):
        for column, number in enumerate(numbers):
            y0 = sheet.top + (column + 0.5) * slot + (row - num_rows / 2) * bar
            reach = axis.reach(number, length)
            x = foot + max(reach, 1) if number >= 0 else foot + min(reach, -1)
            sheet.mark_boxes[row, column] = box = (min(foot, x), y0, max(foot, x), y0 + bar - (num_rows > 1))
            colour = sheet.colour(row, column)
            sheet.canvas.shape("rectangle", box, fill=colour, outline=style.outline)
            if not style.values_printed:
                sheet.value_boxes[row, column] = (x - 8 * style.scale, y0, x + 4 * style.scale, y0 + bar)
                continue
            text = spec.printed[row][column]
            inside = style.values_inside and x - foot > face.width(text) + 2 * gap and bar > face.cap_height + 3
            left_of_tip = inside or number < 0
            at = x - gap if left_of_tip else x + gap
            ink = ink_on(colour) if inside else style.value_ink
            sheet.value_boxes[row, column] = sheet.canvas.text(
                text, at, y0 + bar / 2, face, ink, float(left_of_tip), middle=True
            )


def _place_sideways_stacks(sheet: Sheet, foot: float, slot: float, length: float, axis: ValueAxis) -> None:
    """Place the bars of all series one behind the other, each value in the middle of its bar."""
    spec, style, face = sheet.spec, sheet.style, sheet.style.value_face
    bar = slot * style.bar_share
    for column in range(len(spec.labels)):
        x, y0 = foot, sheet.top + (column + 0.5) * slot - bar / 2
        for row, numbers in enumerate(spec.numbers):
            x1 = x + axis.reach(numbers[column], length)
            sheet.mark_boxes[row, column] = sheet.value_boxes[row, column] = box = (x, y0, x1, y0 + bar)
            sheet.canvas.shape("rectangle", box, fill=style.colours[row], outline=style.background)
            if style.values_printed:
                text = spec.printed[row][column]
                if face.width(text) > x1 - x - 1:
                    raise DoesNotFit
                place = ((x + x1) / 2, y0 + bar / 2, face, ink_on(style.colours[row]), 0.5)
                sheet.value_boxes[row, column] = sheet.canvas.text(text, *place, middle=True)
            x = x1
