"""Lay out a pie or ring."""

import math

from vlm.training.synthetic.canvas import DoesNotFit
from vlm.training.synthetic.layouts.sheet import Sheet, ink_on


def lay_pie(sheet: Sheet) -> None:
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


def lay_pie_with_legend(sheet: Sheet) -> None:
    """Lay out a pie or ring whose slices are named in a legend, their values there or in the slices."""
    style, spec, gap = sheet.style, sheet.spec, sheet.gap
    numbers, total = spec.numbers[0], sum(spec.numbers[0])
    if min(numbers) / total < 0.03:
        raise DoesNotFit
    _place_pie_legend(sheet)
    radius = min(sheet.right - sheet.left, sheet.bottom - sheet.top) / 2 - gap
    if radius < 28 * style.scale:
        raise DoesNotFit
    cx, cy = (sheet.left + sheet.right) / 2, (sheet.top + sheet.bottom) / 2
    angle = style.first_angle
    for column, number in enumerate(numbers):
        sweep, colour = 360 * number / total, style.colours[column]
        disc = (cx - radius, cy - radius, cx + radius, cy + radius)
        sheet.canvas.shape("pieslice", disc, start=angle, end=angle + sweep, fill=colour, outline=style.background)
        turn = math.radians(angle + sweep / 2)
        x, y, half = cx + math.cos(turn) * radius * 0.75, cy + math.sin(turn) * radius * 0.75, radius * 0.15
        sheet.mark_boxes[0, column] = (x - half, y - half, x + half, y + half)
        if style.values_inside:
            text, face = spec.printed[0][column], style.value_face
            chord = 2 * 0.75 * radius * math.sin(math.radians(min(sweep, 180)) / 2)
            if max(face.width(text), face.line_height) > min(chord, 0.5 * radius):
                raise DoesNotFit
            sheet.value_boxes[0, column] = sheet.canvas.text(text, x, y, face, ink_on(colour), 0.5, middle=True)
        angle += sweep
    if style.ring:
        hole = radius * 0.5
        sheet.canvas.shape("ellipse", (cx - hole, cy - hole, cx + hole, cy + hole), fill=style.background)


def _place_pie_legend(sheet: Sheet) -> None:
    """Place swatches and names in a column on the right or below the pie, each with its value unless that is inside."""
    style, spec, gap, face = sheet.style, sheet.spec, sheet.gap, sheet.style.label_face
    swatch, pitch = 7 * style.scale, face.line_height + gap
    names = max(map(face.width, spec.labels))
    values = 0 if style.values_inside else max(map(style.value_face.width, spec.printed[0])) + 2 * gap
    width, height = swatch + gap + names + values, pitch * len(spec.labels)
    if style.legend_below:
        x, y = (sheet.left + sheet.right - width) / 2, sheet.bottom - height + pitch / 2
    else:
        x, y = sheet.right - width, (sheet.top + sheet.bottom - height + pitch) / 2
    for column, label in enumerate(spec.labels):
        sheet.canvas.shape("rectangle", (x, y - swatch / 2, x + swatch, y + swatch / 2), fill=style.colours[column])
        box = sheet.canvas.text(label, x + swatch + gap, y, face, style.label_ink, middle=True)
        sheet.label_boxes[column] = box
        if not style.values_inside:
            at, align = (x + width, 1.0) if style.labels_left else (box[2] + 2 * gap, 0.0)
            sheet.value_boxes[0, column] = sheet.canvas.text(
                spec.printed[0][column], at, y, style.value_face, style.value_ink, align, middle=True
            )
        y += pitch
    if style.legend_below:
        sheet.bottom -= height + gap
    else:
        sheet.right = x - 2 * gap
