"""Boxes with arrows between them: one after another, round in a cycle, or a web in layers."""

import math
from random import Random

from vlm.training.synthetic.boxes import Box
from vlm.training.synthetic.canvas import Canvas, DoesNotFit
from vlm.training.synthetic.diagrams.drawing import (
    Drawing,
    Part,
    Print,
    apart,
    box_around,
    draw_arrow,
    draw_box,
    print_name,
    shuffled_letters,
)

OUTLINES = ("rectangle", "rounded_rectangle", "ellipse")
MIN_GAP = 14
"""Between boxes, in pixels, so that an arrow is seen."""
SHARE_JOINED = 0.35
"""Of the pairs of boxes in neighbouring layers of a web that have an arrow beside the first of each box."""


def draw_chain(random: Random, canvas: Canvas, style: Print, names: list[str]) -> Drawing:
    """Draw boxes in reading order, or in columns, an arrow from each to the next."""
    num_columns = random.choice((1, 2, 3)) if canvas.width < 300 else random.choice((1, 2, 3, 4))
    num_rows = math.ceil(len(names) / num_columns)
    places = []
    for index in range(len(names)):
        row, column = divmod(index, num_columns)
        # Every other row runs back, so that no arrow crosses the sheet.
        column = num_columns - 1 - column if row % 2 else column
        places.append(((column + 0.5) / num_columns, (row + 0.5) / num_rows))
    arrows = [(index, index + 1) for index in range(len(names) - 1)]
    return _draw(random, canvas, style, names, places, arrows, random.choice(("step", "stage")))


def draw_cycle(random: Random, canvas: Canvas, style: Print, names: list[str]) -> Drawing:
    """Draw boxes in a ring, an arrow from each to the next."""
    first, way = random.uniform(0, 2 * math.pi), random.choice((1, 1, 1, -1))
    turns = [first + way * 2 * math.pi * index / len(names) for index in range(len(names))]
    places = [(0.5 + 0.34 * math.cos(turn), 0.5 + 0.4 * math.sin(turn)) for turn in turns]
    arrows = [(index, (index + 1) % len(names)) for index in range(len(names))]
    return _draw(random, canvas, style, names, places, arrows, random.choice(("stage", "phase")))


def draw_web(random: Random, canvas: Canvas, style: Print, names: list[str]) -> Drawing:
    """Draw boxes in two or three layers; arrows lead upwards, at least one from each box of a lower layer."""
    num_layers = 2 if len(names) < 5 else random.choice((2, 3))
    layers = [list(range(len(names)))[layer::num_layers] for layer in range(num_layers)]
    places = [(0.0, 0.0)] * len(names)
    arrows = []
    for layer, members in enumerate(layers):
        for place, index in enumerate(members):
            shift = random.uniform(-0.1, 0.1) / len(members)
            places[index] = ((place + 0.5) / len(members) + shift, 1 - (layer + 0.5) / num_layers)
        for index in members if layer + 1 < num_layers else ():
            above = layers[layer + 1]
            joined = {random.choice(above)} | {other for other in above if random.random() < SHARE_JOINED}
            arrows += [(index, other) for other in sorted(joined)]
    return _draw(random, canvas, style, names, places, arrows, random.choice(("box", "item")))


def _draw(
    random: Random,
    canvas: Canvas,
    style: Print,
    names: list[str],
    places: list[tuple[float, float]],
    arrows: list[tuple[int, int]],
    noun: str,
) -> Drawing:
    """Draw boxes at `places` (x, y), shares of the sheet, and the arrows; raises `DoesNotFit` where they touch."""
    outline, width = random.choice(OUTLINES), random.choice((1, 2))
    letters = shuffled_letters(random, len(names))
    boxes: list[Box] = [
        box_around(style, name, letter, x * canvas.width, y * canvas.height)
        for name, letter, (x, y) in zip(names, letters, places, strict=True)
    ]
    if not apart(boxes, MIN_GAP) or not all(
        x0 > 0 and x1 < canvas.width and y0 > 0 and y1 < canvas.height for x0, y0, x1, y1 in boxes
    ):
        raise DoesNotFit
    drawing = Drawing(noun, arrows=arrows)
    for start, end in arrows:
        draw_arrow(canvas, boxes[start], boxes[end], style.ink, width)
    for name, letter, box in zip(names, letters, boxes, strict=True):
        draw_box(random, canvas, box, outline, style.ink)
        printed = print_name(canvas, style, name, letter, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        drawing.parts.append(Part(name, letter, *printed))
    return drawing
