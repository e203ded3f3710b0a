"""A figure of several parts, each with its name beside it and a line that leads there."""

from random import Random

from vlm.training.synthetic.boxes import Box
from vlm.training.synthetic.canvas import Canvas, Colour, DoesNotFit
from vlm.training.synthetic.diagrams.drawing import Drawing, Part, Print, name_width, print_name, shuffled_letters
from vlm.training.synthetic.style import COLOURS

SHARE_OF_WIDTH = 0.36
"""Of the sheet, that the figure takes; the names stand on both sides."""


def draw_parts(random: Random, canvas: Canvas, style: Print, names: list[str]) -> Drawing:
    """Draw layers one above another, or shells one inside another, each in a colour of its own."""
    names = names[:6]
    tints = random.sample(sorted(COLOURS["train"]), len(names))
    half = SHARE_OF_WIDTH * canvas.width / 2
    middle, top, bottom = canvas.width / 2, 0.08 * canvas.height, 0.92 * canvas.height
    frame = (middle - half, top, middle + half, bottom)
    place_figure = random.choice((_place_layers, _place_shells))
    spots, traits = place_figure(
        random, canvas, frame, [random.choice(COLOURS["train"][tint]) for tint in tints], style.ink
    )
    drawing = Drawing("part")
    order = sorted(range(len(names)), key=lambda index: spots[index][1])
    letters = shuffled_letters(random, len(names))
    printed = {}
    for line, index in enumerate(order):
        # Names stand left and right in turn, each at the height of its spot.
        on_left = line % 2 == 0
        x, y = spots[index]
        if name_width(style, names[index], letters[index]) > middle - half - 12:
            raise DoesNotFit
        edge = frame[0] - 10 if on_left else frame[2] + 10
        canvas.shape("line", ((edge, y), (x, y)), fill=style.ink)
        canvas.shape("ellipse", (x - 2, y - 2, x + 2, y + 2), fill=style.ink)
        at = edge - 3 if on_left else edge + 3
        printed[index] = print_name(canvas, style, names[index], letters[index], at, y, float(on_left))
    for index, name in enumerate(names):
        told = (*traits[index], tints[index])
        drawing.parts.append(Part(name, letters[index], *printed[index], told))
    return drawing


def _place_layers(
    random: Random, canvas: Canvas, frame: Box, fills: list[Colour], ink: Colour
) -> tuple[list[tuple[float, float]], list[tuple[str, ...]]]:
    """Draw layers of different heights from the top down; return a spot (x, y) in each and what is told of it."""
    left, top, right, bottom = frame
    shares = [random.uniform(1, 2) for _ in fills]
    spots, y = [], top
    for share, fill in zip(shares, fills, strict=True):
        height = (bottom - top) * share / sum(shares)
        canvas.shape("rectangle", (left, y, right, y + height), fill=fill, outline=ink)
        spots.append((random.uniform(left + 8, right - 8), y + height / 2))
        y += height
    traits: list[tuple[str, ...]] = [()] * len(fills)
    traits[0], traits[-1] = ("at the top",), ("at the bottom",)
    return spots, traits


def _place_shells(
    random: Random, canvas: Canvas, frame: Box, fills: list[Colour], ink: Colour
) -> tuple[list[tuple[float, float]], list[tuple[str, ...]]]:
    """Draw shells from the outermost in; return a spot in each and what is told of it."""
    left, top, right, bottom = frame
    method = random.choice(("ellipse", "rectangle"))
    x, y, half_width, half_height = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    steps = len(fills)
    spots = []
    for index, fill in enumerate(fills):
        share = 1 - index / steps
        canvas.shape(
            method,
            (x - half_width * share, y - half_height * share, x + half_width * share, y + half_height * share),
            fill=fill,
            outline=ink,
        )
        # In the middle of the ring that the next shell leaves, above the centre and below it in turn.
        inset = share - 0.5 / steps
        last = index == steps - 1
        spots.append((x, y if last else y + half_height * inset * (-1) ** index))
    traits: list[tuple[str, ...]] = [()] * steps
    traits[0], traits[-1] = ("the outermost",), ("the innermost",)
    return spots, traits
