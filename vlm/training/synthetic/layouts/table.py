"""Lay out a table: labels in the first column, one further column a series under its name."""

from vlm.training.synthetic.canvas import DoesNotFit, wrap
from vlm.training.synthetic.layouts.sheet import Sheet, ink_on

ZEBRA, RULE = (240, 242, 246), (190, 190, 190)


def lay_table(sheet: Sheet) -> None:
    """Lay out printed values in rows and columns, ruled or striped."""
    style, canvas, spec, gap = sheet.style, sheet.canvas, sheet.spec, sheet.gap
    face, num_columns = style.label_face, len(spec.series_names)
    wrapped = [wrap(label, face, 0.4 * (sheet.right - sheet.left), 2) for label in spec.labels]
    body = sheet.left + max(face.width(line) for lines in wrapped for line in lines) + 3 * gap
    column_width = min((sheet.right - body) / num_columns, style.max_slot * 3 * style.scale)
    right = body + num_columns * column_width
    heads = [wrap(name, style.head_face, column_width - 2 * gap, 2) for name in spec.series_names]
    head_height = max(map(len, heads)) * style.head_face.line_height + 2 * gap
    row_height = (sheet.bottom - sheet.top - head_height) / len(spec.labels)
    if row_height < max(map(len, wrapped)) * face.line_height + 1:
        raise DoesNotFit
    row_height = min(row_height, style.max_slot * style.scale)
    if max(style.value_face.width(text) for row in spec.printed for text in row) > column_width - 2 * gap:
        raise DoesNotFit
    _draw_ruling(
        sheet, right, sheet.top + head_height, row_height, [body + i * column_width for i in range(num_columns)]
    )
    align = 1.0 if style.source_align else 0.5
    for row, lines in enumerate(heads):
        x = body + (row + align) * column_width - (gap if align == 1 else 0)
        first = sheet.top + head_height - gap - style.head_face.descent - (len(lines) - 1) * style.head_face.line_height
        ink = ink_on(style.colours[0]) if style.ruled else style.ink
        sheet.series_boxes[row] = canvas.lines(
            lines, x, first, style.head_face, ink, align, style.head_face.line_height
        )
    for column, lines in enumerate(wrapped):
        y0 = sheet.top + head_height + column * row_height
        first = y0 + (row_height + face.cap_height) / 2 - (len(lines) - 1) * face.line_height / 2
        sheet.label_boxes[column] = canvas.lines(
            lines, sheet.left + gap, first, face, style.label_ink, 0.0, face.line_height
        )
        for row in range(num_columns):
            x0 = body + row * column_width
            sheet.mark_boxes[row, column] = (x0, y0, x0 + column_width, y0 + row_height)
            x = x0 + align * column_width - (gap if align == 1 else 0)
            sheet.value_boxes[row, column] = canvas.text(
                spec.printed[row][column], x, y0 + row_height / 2, style.value_face, style.value_ink, align, middle=True
            )


def _draw_ruling(sheet: Sheet, right: float, body_top: float, row_height: float, column_xs: list[float]) -> None:
    """Draw what sets the cells apart: a head of colour, stripes or lines."""
    style, canvas, num_rows = sheet.style, sheet.canvas, len(sheet.spec.labels)
    bottom = body_top + num_rows * row_height
    if style.ruled:
        canvas.shape("rectangle", (sheet.left, sheet.top, right, body_top), fill=style.colours[0])
    for row in range(num_rows):
        y = body_top + row * row_height
        if style.banded and row % 2:
            canvas.shape("rectangle", (sheet.left, y, right, y + row_height), fill=ZEBRA)
        elif not style.banded:
            canvas.shape("line", ((sheet.left, y), (right, y)), fill=RULE)
    canvas.shape("line", ((sheet.left, bottom), (right, bottom)), fill=RULE)
    if style.framed:
        canvas.shape("rectangle", (sheet.left, sheet.top, right, bottom), outline=RULE)
        for x in column_xs:
            canvas.shape("line", ((x, sheet.top), (x, bottom)), fill=RULE)
