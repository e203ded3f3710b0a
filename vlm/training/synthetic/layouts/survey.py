"""Lay out the rows of survey publishers: groups of rows under headings, parts of a bar under heads of columns."""

from itertools import pairwise

from vlm.training.synthetic.canvas import DoesNotFit, wrap
from vlm.training.synthetic.layouts.sheet import Sheet, ink_on, readable

LABEL_SHARE = 0.4
"""Of the width, for the labels at most."""
RULE = (200, 200, 200)


def lay_stacked_rows(sheet: Sheet) -> None:
    """Lay out bars made of the parts of all series, each value in its part."""
    plot, rows, bar = _lay_rows(sheet)
    longest = max(map(sum, zip(*sheet.spec.numbers, strict=True)))
    per_unit = (sheet.right - plot) / longest
    for column, y in rows.items():
        x = plot
        for row, numbers in enumerate(sheet.spec.numbers):
            _place_part(sheet, (row, column), (x, y, x + numbers[column] * per_unit, y + bar))
            x += numbers[column] * per_unit
    middles = [
        (sheet.mark_boxes[row, 0][0] + sheet.mark_boxes[row, 0][2]) / 2 for row in range(len(sheet.spec.numbers))
    ]
    _place_heads(sheet, middles, 0.5, plot, _head_baseline(sheet))


def lay_two_sided_rows(sheet: Sheet) -> None:
    """Lay out two series as bars that run left and right from a line in the middle."""
    plot, rows, bar = _lay_rows(sheet)
    style, face, gap = sheet.style, sheet.style.value_face, sheet.gap
    room = 0 if style.values_inside else max(face.width(text) for row in sheet.spec.printed for text in row) + gap
    left, right = (max(row) for row in sheet.spec.numbers)
    per_unit = (sheet.right - plot - 2 * room) / (left + right)
    middle = plot + room + left * per_unit
    for column, y in rows.items():
        for row, side in enumerate((-1, 1)):
            tip = middle + side * sheet.spec.numbers[row][column] * per_unit
            box = (min(tip, middle), y, max(tip, middle), y + bar)
            if style.values_inside:
                _place_part(sheet, (row, column), box)
            else:
                _place_bar(sheet, (row, column), box, tip, align=float(side < 0))
    sheet.canvas.shape(
        "line", ((middle, rows[0] - gap), (middle, max(rows.values()) + bar + gap)), fill=style.axis_colour
    )
    heads = [middle - gap, middle + gap]
    for row, (x, align) in enumerate(zip(heads, (1.0, 0.0), strict=True)):
        _place_head(sheet, row, x, align, (x - plot if row == 0 else sheet.right - x), _head_baseline(sheet))


def lay_panels(sheet: Sheet) -> None:
    """Lay out each series as horizontal bars in a column of its own."""
    plot, rows, bar = _lay_rows(sheet)
    style, face, num_panels = sheet.style, sheet.style.value_face, len(sheet.spec.numbers)
    room = 0 if style.values_inside else max(face.width(text) for row in sheet.spec.printed for text in row)
    panel = (sheet.right - plot) / num_panels
    highest = max(map(max, sheet.spec.numbers))
    per_unit = (panel - room - 3 * sheet.gap) / highest
    if per_unit * highest < 12 * style.scale:
        raise DoesNotFit
    for row, numbers in enumerate(sheet.spec.numbers):
        x = plot + row * panel
        for column, y in rows.items():
            tip = x + max(numbers[column] * per_unit, 1)
            place = _place_part if style.values_inside else _place_bar
            place(sheet, (row, column), (x, y, tip, y + bar), *(() if style.values_inside else (tip, 0.0)))
    _place_heads(sheet, [plot + row * panel for row in range(num_panels)], 0.0, plot, _head_baseline(sheet))


def _lay_rows(sheet: Sheet) -> tuple[float, dict[int, float], float]:
    """Place headings and labels; return where the plot begins, the y of each row's bar, and the bars' height."""
    style, spec, face, gap = sheet.style, sheet.spec, sheet.style.label_face, sheet.gap
    wrapped = [wrap(label, face, LABEL_SHARE * (sheet.right - sheet.left), 2) for label in spec.labels]
    plot = sheet.left + max(face.width(line) for lines in wrapped for line in lines) + 2 * gap
    top = _head_baseline(sheet) + face.descent + gap if style.legend == "heads" else sheet.top
    headings = dict(spec.headings)
    heading_height = face.line_height + gap
    free = sheet.bottom - top - heading_height * len(headings)
    slot = min(free / len(spec.labels), style.max_slot * style.scale)
    if slot < max(map(len, wrapped)) * face.line_height + 1 or sheet.right - plot < 80 * style.scale:
        raise DoesNotFit
    bar, rows, y = max(slot * style.bar_share, style.value_face.line_height), {}, top
    for column, (label, lines) in enumerate(zip(spec.labels, wrapped, strict=True)):
        if label in headings:
            if style.ruled and column:
                sheet.canvas.shape("line", ((sheet.left, y), (sheet.right, y)), fill=RULE)
            sheet.canvas.text(headings[label], sheet.left, y + face.ascent + gap / 2, style.head_face, style.ink)
            y += heading_height
        middle = y + slot / 2
        first = middle + face.cap_height / 2 - (len(lines) - 1) * face.line_height / 2
        x, align = (sheet.left, 0.0) if style.labels_left else (plot - 2 * gap, 1.0)
        sheet.label_boxes[column] = sheet.canvas.lines(lines, x, first, face, style.label_ink, align, face.line_height)
        rows[column] = middle - bar / 2
        y += slot
    return plot, rows, bar


def _place_part(sheet: Sheet, place: tuple[int, int], box: tuple[float, float, float, float]) -> None:
    """Place a bar or a part of one, its value in its middle."""
    (row, column), face, colour = place, sheet.style.value_face, sheet.style.colours[place[0]]
    text, (x0, y0, x1, y1) = sheet.spec.printed[row][column], box
    if face.width(text) > x1 - x0 - 1:
        raise DoesNotFit
    sheet.canvas.shape("rectangle", box, fill=colour)
    sheet.mark_boxes[place] = box
    sheet.value_boxes[place] = sheet.canvas.text(
        text, (x0 + x1) / 2, (y0 + y1) / 2, face, ink_on(colour), 0.5, middle=True
    )


def _place_bar(
    sheet: Sheet, place: tuple[int, int], box: tuple[float, float, float, float], tip: float, align: float
) -> None:
    """Place a bar with its value beyond its tip: right of it (align 0) or left of it (1)."""
    style, (row, column) = sheet.style, place
    sheet.canvas.shape("rectangle", box, fill=style.colours[row])
    sheet.mark_boxes[place] = box
    x, y = tip + (sheet.gap if align == 0 else -sheet.gap), (box[1] + box[3]) / 2
    sheet.value_boxes[place] = sheet.canvas.text(
        sheet.spec.printed[row][column], x, y, style.value_face, style.value_ink, align, middle=True
    )


def _head_baseline(sheet: Sheet) -> float:
    """Return the baseline of the last line of the heads of columns, for which two lines are kept."""
    return sheet.top + sheet.style.head_face.ascent + sheet.style.head_face.line_height


def _place_heads(sheet: Sheet, xs: list[float], align: float, plot: float, baseline: float) -> None:
    """Place the names of all series as heads of columns at `xs`, if that is where they stand."""
    bounds = [plot, *((one + other) / 2 for one, other in pairwise(xs)), sheet.right]
    for row, x in enumerate(xs):
        following = xs[row + 1] if row + 1 < len(xs) else sheet.right
        width = 2 * min(x - bounds[row], bounds[row + 1] - x) if align else following - x
        _place_head(sheet, row, x, align, width - sheet.gap, baseline)


def _place_head(sheet: Sheet, row: int, x: float, align: float, width: float, baseline: float) -> None:
    """Place a head of at most two lines, the last of them at `baseline`, unless the names stand in a legend."""
    style, face = sheet.style, sheet.style.head_face
    if style.legend != "heads":
        return
    lines = wrap(sheet.spec.series_names[row], face, max(width, 1), 2)
    ink = readable(style.colours[row], sheet) if style.names_coloured else style.ink
    first = baseline - (len(lines) - 1) * face.line_height
    sheet.series_boxes[row] = sheet.canvas.lines(lines, x, first, face, ink, align, face.line_height)
