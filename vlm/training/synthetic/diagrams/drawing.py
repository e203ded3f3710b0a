"""What a diagram is made of, and the drawing of its boxes, letters and arrows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from PIL import Image

from vlm.training.synthetic.boxes import Box, Character
from vlm.training.synthetic.canvas import Canvas, Colour
from vlm.training.synthetic.fonts import Face
from vlm.training.synthetic.questions.question import Question

LETTERS = "ABCDEFGHIJKLMNOP"
FILLS: tuple[Colour, ...] = ((255, 255, 255), (225, 238, 250), (252, 230, 205), (226, 243, 220), (245, 225, 240))
ARROW_HEAD = 6.0
"""In pixels."""


class Part(NamedTuple):
    """A box or a part of a figure: its name and its letter, and where each is printed if it is.

    traits: what is told of it, such as "at the top", as in "Which part is at the top?".
    """

    name: str
    letter: str
    name_box: Box | None
    letter_box: Box | None
    traits: tuple[str, ...] = ()


class Print(NamedTuple):
    """How and what of the names is printed."""

    face: Face
    ink: Colour
    shows_words: bool
    shows_letters: bool


@dataclass
class Drawing:
    """A diagram under way. noun: what a question calls a part. arrows: (from, to) as places in `parts`."""

    noun: str
    parts: list[Part] = field(default_factory=list)
    arrows: list[tuple[int, int]] = field(default_factory=list)


# Without eq, as charts, so that what is worked out of a diagram can be cached.
@dataclass(frozen=True, kw_only=True, eq=False)
class Diagram:
    """A drawn diagram: the picture, every printed character, its parts and arrows, and its questions."""

    image: Image.Image
    characters: tuple[Character, ...]
    parts: tuple[Part, ...]
    arrows: tuple[tuple[int, int], ...]
    questions: tuple[Question, ...]
    marks: tuple = ()
    """None: a diagram has no values."""


def shuffled_letters(random: Random, number: int) -> list[str]:
    """Return the first letters of the alphabet, in their order as often as not."""
    letters = list(LETTERS[:number])
    return letters if random.random() < 0.5 else random.sample(letters, number)


def print_name(
    canvas: Canvas, style: Print, name: str, letter: str, x: float, y: float, align: float = 0.5
) -> tuple[Box | None, Box | None]:
    """Print a letter, a name, or both side by side, with the middle at height `y`; return the boxes of name and letter.

    align: 0 where `x` is the left edge, 0.5 the middle, 1 the right edge.
    """
    gap = style.face.advance(" ") * 1.5
    widths = [style.face.width(text) for text in (letter, name)]
    shown = [style.shows_letters, style.shows_words]
    total = sum(width for width, is_shown in zip(widths, shown, strict=True) if is_shown) + gap * all(shown)
    left = x - align * total
    letter_box = name_box = None
    if style.shows_letters:
        letter_box = canvas.text(letter, left, y, style.face, style.ink, middle=True)
        left += widths[0] + gap
    if style.shows_words:
        name_box = canvas.text(name, left, y, style.face, style.ink, middle=True)
    return name_box, letter_box


def name_width(style: Print, name: str, letter: str) -> float:
    """Return the width in pixels of what `print_name` prints."""
    width = style.face.width(name) * style.shows_words + style.face.width(letter) * style.shows_letters
    return width + 1.5 * style.face.advance(" ") * (style.shows_words and style.shows_letters)


def box_around(style: Print, name: str, letter: str, x: float, y: float) -> Box:
    """Return the outline of a box with what is printed in its middle (x, y)."""
    half_width, half_height = name_width(style, name, letter) / 2 + 6, style.face.line_height / 2 + 4
    return x - half_width, y - half_height, x + half_width, y + half_height


def draw_box(random: Random, canvas: Canvas, box: Box, method: str, ink: Colour) -> None:
    style = {"radius": 6} if method == "rounded_rectangle" else {}
    canvas.shape(method, box, fill=random.choice(FILLS), outline=ink, **style)


def draw_arrow(canvas: Canvas, start: Box, end: Box, ink: Colour, width: int) -> None:
    """Draw an arrow from the rim of one box to the rim of another, along the line between their middles."""
    (ax, ay), (bx, by) = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (start, end))
    from_x, from_y = _rim(start, ax, ay, bx, by)
    to_x, to_y = _rim(end, bx, by, ax, ay)
    canvas.shape("line", ((from_x, from_y), (to_x, to_y)), fill=ink, width=width)
    turn = math.atan2(to_y - from_y, to_x - from_x)
    length = ARROW_HEAD + width
    back = [(to_x - length * math.cos(turn + side), to_y - length * math.sin(turn + side)) for side in (-0.45, 0.45)]
    canvas.shape("polygon", [(to_x, to_y), *back], fill=ink)


def _rim(box: Box, x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    """Return where the line from a box's middle (x, y) to a point outside leaves the box."""
    across, down = abs(to_x - x), abs(to_y - y)
    share = min(
        (box[2] - box[0]) / 2 / across if across else math.inf, (box[3] - box[1]) / 2 / down if down else math.inf
    )
    return x + share * (to_x - x), y + share * (to_y - y)


def apart(boxes: Sequence[Box], margin: float) -> bool:
    """Return whether no two boxes come nearer to each other than `margin` pixels."""
    return all(
        a[0] >= b[2] + margin or b[0] >= a[2] + margin or a[1] >= b[3] + margin or b[1] >= a[3] + margin
        for place, a in enumerate(boxes)
        for b in boxes[:place]
    )
