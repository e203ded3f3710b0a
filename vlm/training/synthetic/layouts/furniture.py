"""What stands around the plot of a chart: toolbar, title, legend, notes."""

from vlm.training.synthetic.canvas import Colour, DoesNotFit, wrap
from vlm.training.synthetic.layouts.sheet import Sheet

LOGO_FILL: Colour = (15, 40, 70)


def place_toolbar(sheet: Sheet) -> None:
    """Place the column of grey buttons that the pages of statistics publishers have on the right."""
    side, scale = 16 * sheet.style.scale, sheet.style.scale
    x = sheet.right - side
    for index in range(6):
        y = sheet.top + (3 + 22 * index) * scale
        sheet.canvas.shape("rectangle", (x, y, x + side, y + side), fill=(246, 246, 246), outline=(225, 225, 225))
        icon = (x + 5 * scale, y + 5 * scale, x + side - 5 * scale, y + side - 5 * scale)
        sheet.canvas.shape(("ellipse", "rectangle")[index % 2], icon, fill=(170, 180, 200))
    sheet.right = x - 2 * sheet.gap


def place_header(sheet: Sheet) -> None:
    """Place title and subtitle at the top and take their height from the free area."""
    style, spec, canvas = sheet.style, sheet.spec, sheet.canvas
    edge = sheet.right
    if spec.logo:
        sheet.right = _place_logo(sheet)
    x = (sheet.left, (sheet.left + sheet.right) / 2)[style.title_align > 0]
    if spec.title:
        lines = wrap(spec.title, style.title_face, sheet.right - sheet.left, 3 if style.look == "survey" else 2)
        spacing = max(style.title_face.line_height, style.line_pitch * style.scale)
        first = sheet.top + style.title_face.ascent
        sheet.title_box = canvas.lines(lines, x, first, style.title_face, style.ink, style.title_align, spacing)
        sheet.top = sheet.title_box[3] + sheet.gap
    if spec.subtitle and style.long_subtitle:
        lines = wrap(spec.subtitle, style.small_face, sheet.right - sheet.left, 4)
        first, spacing = sheet.top + style.small_face.ascent, style.small_face.line_height
        box = canvas.lines(lines, x, first, style.small_face, style.faint_ink, style.title_align, spacing)
        sheet.top = box[3] + 2 * sheet.gap
    elif spec.subtitle and not style.upward_subtitle:
        box = canvas.text(
            spec.subtitle, x, sheet.top + style.small_face.ascent, style.small_face, style.faint_ink, style.title_align
        )
        sheet.top = box[3] + sheet.gap
    elif spec.subtitle:
        middle = (sheet.top + sheet.bottom) / 2
        box = canvas.upward_text(
            spec.subtitle, sheet.left + style.small_face.ascent, middle, style.small_face, style.faint_ink
        )
        sheet.left = box[2] + sheet.gap
    sheet.right = edge


def _place_logo(sheet: Sheet) -> float:
    """Place the publisher's logo in the upper right corner and return how far to the right print may go beside it."""
    face, gap = sheet.style.small_face, sheet.gap
    lines = sheet.spec.logo.split(" ")
    left = sheet.right - max(map(face.width, lines)) - 2 * gap
    height = len(lines) * face.line_height + 2 * gap
    sheet.canvas.shape("rectangle", (left, sheet.top, sheet.right, sheet.top + height), fill=LOGO_FILL)
    middle, first = (left + sheet.right) / 2, sheet.top + gap + face.ascent
    sheet.canvas.lines(lines, middle, first, face, (255, 255, 255), 0.5, face.line_height)
    return left - 2 * gap


def place_notes(sheet: Sheet) -> None:
    """Place paragraphs at the foot of the chart."""
    style, face = sheet.style, sheet.style.small_face
    lines = [line for note in sheet.spec.notes for line in wrap(note, face, sheet.right - sheet.left, 4)]
    if not lines:
        return
    first = sheet.bottom - face.descent - (len(lines) - 1) * face.line_height
    box = sheet.canvas.lines(lines, sheet.left, first, face, style.faint_ink, 0.0, face.line_height)
    sheet.bottom = box[1] - 2 * sheet.gap


def place_footer(sheet: Sheet) -> None:
    if not sheet.spec.source:
        return
    face, y = sheet.style.small_face, sheet.bottom - sheet.style.small_face.descent
    right = sheet.style.source_align > 0
    x = sheet.right if right else sheet.left
    box = sheet.canvas.text(sheet.spec.source, x, y, face, sheet.style.faint_ink, float(right))
    sheet.bottom = box[1] - sheet.gap


def place_legend(sheet: Sheet) -> None:
    """Place swatches and names for charts of several series, unless the layout places the names itself."""
    if len(sheet.spec.series_names) > 1 and sheet.style.legend in ("rows", "right"):
        (_place_legend_column if sheet.style.legend == "right" else _place_legend_rows)(sheet)


def _place_legend_column(sheet: Sheet) -> None:
    """Place the legend in a column right of the plot, the series that is on top of a stack first."""
    style, face, gap = sheet.style, sheet.style.label_face, sheet.gap
    swatch, names = 7 * style.scale, sheet.spec.series_names
    left = sheet.right - max(map(face.width, names)) - swatch - gap
    pitch = max(face.line_height, 1.4 * swatch)
    y = sheet.top + pitch / 2 if style.legend_below else (sheet.top + sheet.bottom - (len(names) - 1) * pitch) / 2
    order = reversed(range(len(names))) if style.stacked else range(len(names))
    for row in order:
        place_entry(sheet, row, left, y, names[row], style.colours[row])
        y += pitch
    sheet.right = left - 3 * gap


def place_entry(sheet: Sheet, row: int, x: float, y: float, name: str, colour: Colour) -> None:
    """Place one entry of a legend, its swatch from `x` on, its middle at height `y`."""
    swatch = 7 * sheet.style.scale
    method = "ellipse" if sheet.style.round_swatches else "rectangle"
    sheet.canvas.shape(method, (x, y - swatch / 2, x + swatch, y + swatch / 2), fill=colour)
    at = x + swatch + sheet.gap
    sheet.series_boxes[row] = sheet.canvas.text(name, at, y, sheet.style.label_face, sheet.style.ink, middle=True)


def _place_legend_rows(sheet: Sheet) -> None:
    """Place the legend in rows above or below the plot."""
    style, face = sheet.style, sheet.style.label_face
    swatch, gap = 7 * style.scale, sheet.gap
    rows: list[list[tuple[int, float]]] = [[]]
    reach = sheet.left
    for row, name in enumerate(sheet.spec.series_names):
        width = swatch + gap + face.width(name)
        if sheet.left + width > sheet.right or len(rows) > 2:
            raise DoesNotFit
        if reach + width > sheet.right:
            rows.append([])
            reach = sheet.left
        rows[-1].append((row, width))
        reach += width + 4 * gap
    first = sheet.bottom - face.cap_height - (len(rows) - 1) * face.line_height
    first = first if style.legend_below else sheet.top + face.cap_height
    for line, entries in enumerate(rows):
        total = sum(width for _, width in entries) + 4 * gap * (len(entries) - 1)
        x, y = (sheet.left + sheet.right - total) / 2, first + line * face.line_height
        for row, width in entries:
            place_entry(sheet, row, x, y, sheet.spec.series_names[row], style.colours[row])
            x += width + 4 * gap
    if style.legend_below:
        sheet.bottom = first - face.line_height
    else:
        sheet.top = first + len(rows) * face.line_height
