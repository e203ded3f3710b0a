"""The names of series at the ends of their lines or areas, in place of a legend."""

from vlm.training.synthetic.canvas import DoesNotFit
from vlm.training.synthetic.layouts.sheet import Sheet, ink_on, readable


def place_end_names(sheet: Sheet, ends: list[tuple[float, float]]) -> None:
    """Place each series' name right of the (x, y) where it ends, or on a tag left of there; apart from one another."""
    style, face = sheet.style, sheet.style.label_face
    pitch = face.line_height + (4 * style.scale if style.end_tags else 0)
    heights = _apart([y for _, y in ends], pitch, sheet.top, sheet.bottom)
    for row, ((x, y), height) in enumerate(zip(ends, heights, strict=True)):
        if style.end_tags:
            _place_tag(sheet, row, x, height)
            continue
        ink = readable(style.colours[row], sheet) if style.names_coloured else style.ink
        if abs(height - y) > style.scale:
            line = ((x + sheet.gap, y), (x + 2.5 * sheet.gap, height))
            sheet.canvas.shape("line", line, fill=style.colours[row])
        sheet.series_boxes[row] = sheet.canvas.text(
            sheet.spec.series_names[row], x + 3 * sheet.gap, height, face, ink, middle=True
        )


def _place_tag(sheet: Sheet, row: int, x: float, y: float) -> None:
    """Place a name on a white tag left of the last point, over the line."""
    face, gap = sheet.style.label_face, sheet.gap
    name = sheet.spec.series_names[row]
    right = x - 4 * gap
    box = (right - face.width(name) - gap, y - face.ascent, right + gap, y + face.descent + gap / 2)
    for (_, column), (x0, y0, x1, y1) in sheet.mark_boxes.items():
        inside = box[0] < (x0 + x1) / 2 < box[2] and box[1] < (y0 + y1) / 2 < box[3]
        if inside and column in sheet.label_boxes:
            raise DoesNotFit  # a point that may be asked for would be hidden
    sheet.canvas.shape("rectangle", box, fill=(255, 255, 255), outline=(200, 200, 200))
    sheet.series_boxes[row] = sheet.canvas.text(name, right, y, face, ink_on((255, 255, 255)), 1.0, middle=True)


def _apart(heights: list[float], pitch: float, top: float, bottom: float) -> list[float]:
    """Return the heights moved as little as needed to be `pitch` apart, all between `top` and `bottom`."""
    if len(heights) * pitch > bottom - top:
        raise DoesNotFit
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    limit = top + pitch / 2
    for row in order:
        moved[row] = limit = max(moved[row], limit)
        limit += pitch
    limit = bottom - pitch / 2
    for row in reversed(order):
        moved[row] = limit = min(moved[row], limit)
        limit -= pitch
    return moved
