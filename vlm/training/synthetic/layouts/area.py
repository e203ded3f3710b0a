"""Areas under lines, and bands on top of one another."""

import numpy as np

from vlm.training.synthetic.layouts.ends import place_end_names
from vlm.training.synthetic.layouts.sheet import Sheet, ValueAxis


def place_areas(sheet: Sheet, xs: list[float], foot: float, length: float, axis: ValueAxis) -> None:
    """Place one band a series on top of the last; values are printed above the edge of a single one only."""
    style, half = sheet.style, 3 * sheet.gap
    floor = [foot] * len(xs)
    ends = []
    for row, numbers in enumerate(sheet.spec.numbers):
        edge = [y - axis.reach(number, length) for y, number in zip(floor, numbers, strict=True)]
        outline = [*zip(xs, edge, strict=True), *reversed(list(zip(xs, floor, strict=True)))]
        sheet.canvas.shape("polygon", outline, fill=style.colours[row])
        for column, (x, y) in enumerate(zip(xs, edge, strict=True)):
            box = (x - half, y, x + half, floor[column]) if style.stacked else (x - half, y - half, x + half, y + half)
            sheet.mark_boxes[row, column] = sheet.value_boxes[row, column] = box
        ends.append((xs[-1], (edge[-1] + floor[-1]) / 2))
        floor = edge
    if style.legend == "ends":
        place_end_names(sheet, ends)
    elif style.values_printed:
        _place_values(sheet, xs, floor)


def _place_values(sheet: Sheet, xs: list[float], edge: list[float]) -> None:
    """Place each value of a single area above all of the edge that is below it."""
    face = sheet.style.value_face
    for column, (x, text) in enumerate(zip(xs, sheet.spec.printed[0], strict=True)):
        half = face.width(text) / 2
        beside = np.interp((x - half, x, x + half), xs, edge)
        sheet.value_boxes[0, column] = sheet.canvas.text(
            text, x, float(min(beside)) - sheet.gap - face.descent, face, sheet.style.value_ink, 0.5
        )
