"""A sheet of paper that knows where every printed character stands.

Texts and shapes are collected first and drawn at the end, so that a layout that does not fit costs nothing: a text that
leaves the sheet or touches another raises `DoesNotFit` at once.
"""

import io
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vlm.training.synthetic.fonts import Face

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


class DoesNotFit(Exception):
    """A text would leave the sheet or touch another; the caller draws other contents."""


class Character(NamedTuple):
    """A printed character and its centre in pixels: x half way through its advance, y half way up a capital."""

    char: str
    x: float
    y: float


class Canvas:
    """A sheet of `width` × `height` pixels on which texts and shapes are placed, then drawn by `finish`."""

    def __init__(self, width: int, height: int, background: Colour):
        self.width, self.height, self.background = width, height, background
        self.characters: list[Character] = []
        self.text_boxes: list[Box] = []
        self._shapes: list[tuple] = []
        self._runs: list[tuple[str, float, float, Face, Colour, bool]] = []

    def shape(self, method: str, points: list | tuple, **style) -> None:
        """Place a shape: the name of a method of `ImageDraw`, its points, and its other arguments."""
        self._shapes.append((method, points, style))

    def text(
        self, text: str, x: float, y: float, face: Face, colour: Colour, align: float = 0.0, middle: bool = False
    ) -> Box:
        """Place a line of text and return its box.

        x: of the left edge (align 0), the middle (0.5) or the right edge (1). y: of the baseline, or with `middle` of
        the middle of the capitals.
        """
        width = face.width(text)
        left = round(x - align * width)
        baseline = round(y + face.cap_height / 2) if middle else round(y)
        box = (left, baseline - face.ascent, left + width, baseline + face.descent)
        self._reserve(box)
        self._runs.append((text, left, baseline, face, colour, False))
        reach, centre = float(left), baseline - face.cap_height / 2
        for char in text:
            advance = face.advance(char)
            if char != " ":
                self.characters.append(Character(char, reach + advance / 2, centre))
            reach += advance
        return box

    def lines(
        self, lines: list[str], x: float, y: float, face: Face, colour: Colour, align: float, spacing: float
    ) -> Box:
        """Place lines below one another, the first baseline at `y`, and return the box around them."""
        boxes = [self.text(line, x, y + i * spacing, face, colour, align) for i, line in enumerate(lines)]
        return around(boxes)

    def upward_text(self, text: str, x: float, y: float, face: Face, colour: Colour) -> Box:
        """Place text that runs upwards, its baseline at `x`, its middle at height `y`; return its box."""
        width = face.width(text)
        bottom, baseline = round(y + width / 2), round(x)
        box = (baseline - face.ascent, bottom - width, baseline + face.descent, bottom)
        self._reserve(box)
        self._runs.append((text, baseline, bottom, face, colour, True))
        reach = float(bottom)
        for char in text:
            advance = face.advance(char)
            if char != " ":
                self.characters.append(Character(char, baseline - face.cap_height / 2, reach - advance / 2))
            reach -= advance
        return box

    def _reserve(self, box: Box) -> None:
        x0, y0, x1, y1 = box
        if x0 < 1 or y0 < 1 or x1 > self.width - 1 or y1 > self.height - 1:
            raise DoesNotFit
        for a0, b0, a1, b1 in self.text_boxes:
            if x0 < a1 + 2 and a0 < x1 + 2 and y0 < b1 and b0 < y1:
                raise DoesNotFit
        self.text_boxes.append(box)

    def finish(self) -> Image.Image:
        """Draw the shapes in their order, then the texts."""
        image = Image.new("RGB", (self.width, self.height), self.background)
        draw = ImageDraw.Draw(image)
        for method, points, style in self._shapes:
            getattr(draw, method)(points, **style)
        for text, x, y, face, colour, upward in self._runs:
            if upward:
                _draw_upward(image, text, x, y, face, colour)
            else:
                draw.text((x, y), text, colour, face.font, "ls", stroke_width=face.boldness)
        return image


def _draw_upward(image: Image.Image, text: str, x: float, bottom: float, face: Face, colour: Colour) -> None:
    width, height = int(face.width(text)) + 2, int(face.ascent + face.descent) + 2
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).text((0, face.ascent), text, 255, face.font, "ls")
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    image.paste(colour, (round(x - face.ascent), round(bottom) - width), mask)


def around(boxes: list[Box]) -> Box:
    """Return the smallest box that holds all `boxes`."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def wrap(text: str, face: Face, width: float, max_lines: int) -> list[str]:
    """Break `text` at spaces into at most `max_lines` lines no wider than `width`, or raise `DoesNotFit`."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and face.width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        elif len(lines) < max_lines and face.width(word) <= width:
            lines.append(word)
        else:
            raise DoesNotFit
    return lines


def age(image: Image.Image, random: Random) -> Image.Image:
    """Return the picture as a copy of a copy would look: JPEG blocks or a little noise."""
    if random.random() < 0.6:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=random.randint(55, 92))
        return Image.open(buffer).convert("RGB")
    grain = np.random.default_rng(random.getrandbits(32)).normal(
        0, random.uniform(1, 6), (image.height, image.width, 1)
    )
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
