"""What a screenshot shows around a chart: margins, the text of the page, the bar of the browser."""

from vlm.training.synthetic.canvas import Canvas, wrap
from vlm.training.synthetic.layouts.sheet import Sheet

BAR_HEIGHT = 24
"""Of a browser's bar, in pixels of the finished picture."""
BAR_FILL, FIELD_FILL, BAR_INK = (222, 225, 230), (250, 250, 250), (60, 64, 67)
BUTTONS = ((237, 106, 94), (245, 191, 79), (98, 197, 84))


def place_surroundings(sheet: Sheet) -> None:
    """Place the page around the chart and leave the rest of the sheet free."""
    scale = sheet.style.scale
    if sheet.style.browser:
        sheet.top = _place_bar(sheet.canvas, sheet) + sheet.gap
    left, above, right, below = (side * scale for side in sheet.style.page)
    paragraphs = sheet.spec.neighbours
    if paragraphs:
        _place_text(sheet, paragraphs[0], sheet.top, sheet.top + above)
        _place_text(sheet, paragraphs[-1], sheet.bottom - below, sheet.bottom)
    sheet.left, sheet.top = sheet.left + left, sheet.top + above
    sheet.right, sheet.bottom = sheet.right - right, sheet.bottom - below


def _place_bar(canvas: Canvas, sheet: Sheet) -> float:
    """Place a browser's bar with its buttons and an address, and return where it ends."""
    scale, face, height = sheet.style.scale, sheet.style.small_face, BAR_HEIGHT * sheet.style.scale
    canvas.shape("rectangle", (0, 0, canvas.width, height), fill=BAR_FILL)
    for index, colour in enumerate(BUTTONS):
        x, y, radius = (12 + 14 * index) * scale, height / 2, 4 * scale
        canvas.shape("ellipse", (x - radius, y - radius, x + radius, y + radius), fill=colour)
    field = (58 * scale, 4 * scale, canvas.width - 10 * scale, height - 4 * scale)
    canvas.shape("rectangle", field, fill=FIELD_FILL)
    canvas.text(sheet.spec.address, field[0] + 2 * sheet.gap, height / 2, face, BAR_INK, middle=True)
    return height


def _place_text(sheet: Sheet, text: str, top: float, bottom: float) -> None:
    """Place as many whole lines of `text` as there is room for from `top` to `bottom`."""
    face = sheet.style.label_face
    num_lines = int((bottom - top) // face.line_height)
    lines = wrap(text, face, sheet.right - sheet.left, 99)[:num_lines]
    if lines:
        sheet.canvas.lines(lines, sheet.left, top + face.ascent, face, sheet.style.ink, 0.0, face.line_height)
