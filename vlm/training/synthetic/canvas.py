"""A sheet of paper that knows where every printed character stands.

Texts and shapes are collected first and drawn at the end, so that a layout that does not fit costs nothing: a text that
leaves the sheet or touches another raises `DoesNotFit` at once.
"""

import io
import math
from collections.abc import Iterator
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from vlm.training.synthetic.boxes import Box, Character, Strip, TurnedBox, around
from vlm.training.synthetic.fonts import Face

Colour = tuple[int, int, int]


class DoesNotFit(Exception):
    """A text would leave the sheet or touch another; the caller draws other contents."""


class Canvas:
    """A sheet of `width` × `height` pixels on which texts and shapes are placed, then drawn by `finish`."""

    def __init__(self, width: int, height: int, background: Colour):
        self.width, self.height, self.background = width, height, background
        self.characters: list[Character] = []
        self._text_boxes = _Boxes()
        self._shapes: list[tuple] = []
        self._runs: list[tuple[str, float, float, Face, Colour, bool]] = []
        self._turned: list[tuple[str, Strip, Face, Colour]] = []
        self._turned_cells = _Boxes()

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

    def turned_text(self, text: str, x: float, y: float, face: Face, colour: Colour, degrees: float) -> Box:
        """Place text that rises to the right by `degrees`, (x, y) the middle of its end; return its box."""
        turn, width = math.radians(degrees), face.width(text)
        half_height = max(face.ascent - face.cap_height / 2, face.descent + face.cap_height / 2)
        strip = Strip(x - width * math.cos(turn), y + width * math.sin(turn), turn, width, half_height)
        reach, half, cells = 0.0, face.cap_height / 2 + 1, []
        cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
        for char in text:
            advance = face.advance(char)
            if char != " ":
                at_x, at_y = strip.at(reach + advance / 2)
                self.characters.append(Character(char, at_x, at_y))
                across, down = advance / 2 * cos + half * sin, advance / 2 * sin + half * cos
                cells.append((at_x - across, at_y - down, at_x + across, at_y + down))
            reach += advance
        for cell in cells:
            self._check(cell, self._text_boxes)
        if any(strip.touches(other) for _, other, _, _ in self._turned):
            raise DoesNotFit
        for cell in cells:
            self._turned_cells.add(cell)
        self._turned.append((text, strip, face, colour))
        return TurnedBox(strip)

    def keep_free(self, box: Box) -> None:
        """Let no text placed from now on touch `box`."""
        self._text_boxes.add(box)

    def _reserve(self, box: Box) -> None:
        self._check(box, self._text_boxes)
        self._check(box, self._turned_cells)
        self._text_boxes.add(box)

    def _check(self, box: Box, others: "_Boxes") -> None:
        x0, y0, x1, y1 = box
        if x0 < 1 or y0 < 1 or x1 > self.width - 1 or y1 > self.height - 1:
            raise DoesNotFit
        for a0, b0, a1, b1 in others.near(y0, y1):
            if x0 < a1 + 2 and a0 < x1 + 2 and y0 < b1 and b0 < y1:
                raise DoesNotFit

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
                _draw_text(draw, text, x, y, face, colour, face.boldness)
        for text, strip, face, colour in self._turned:
            _draw_turned(image, text, strip, face, colour)
        return image


class _Boxes:
    """Boxes by how high they stand: on a page full of print most texts are far above or below a new one."""

    BAND = 32
    """Pixels."""

    def __init__(self):
        self._bands: dict[int, list[Box]] = {}

    def add(self, box: Box) -> None:
        for band in self._reach(box[1], box[3]):
            self._bands.setdefault(band, []).append(box)

    def near(self, top: float, bottom: float) -> Iterator[Box]:
        """Yield all boxes with a part between `top` and `bottom`, and others, some of them twice."""
        for band in self._reach(top, bottom):
            yield from self._bands.get(band, ())

    def _reach(self, top: float, bottom: float) -> range:
        return range(int(top // self.BAND), int(bottom // self.BAND) + 1)


def _draw_text(
    draw: ImageDraw.ImageDraw, text: str, x: int, y: int, face: Face, colour: Colour | int, boldness: float = 0.0
) -> None:
    """Draw what `ImageDraw.text` does from (x, y) on the baseline on, in less time."""
    if boldness:
        draw.text((x, y), text, colour, face.font, "ls", stroke_width=boldness)
        return
    left, top, ink = face.ink(text)
    if ink.size:
        draw.bitmap((x + left, y + top), Image.fromarray(ink), colour)


def _draw_upward(image: Image.Image, text: str, x: float, bottom: float, face: Face, colour: Colour) -> None:
    width, height = int(face.width(text)) + 2, int(face.ascent + face.descent) + 2
    mask = Image.new("L", (width, height), 0)
    _draw_text(ImageDraw.Draw(mask), text, 0, face.ascent, face, 255)
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    image.paste(colour, (round(x - face.ascent), round(bottom) - width), mask)


def _draw_turned(image: Image.Image, text: str, strip: Strip, face: Face, colour: Colour) -> None:
    width, height = math.ceil(strip.length) + 4, math.ceil(face.ascent + face.descent) + 4
    baseline = math.ceil(face.ascent) + 2
    mask = Image.new("L", (width, height), 0)
    _draw_text(ImageDraw.Draw(mask), text, 2, baseline, face, 255, face.boldness)
    mask = mask.rotate(math.degrees(strip.turn), Image.Resampling.BICUBIC, expand=True)
    x, y = strip.at(width / 2 - 2, height / 2 - (baseline - face.cap_height / 2))
    image.paste(colour, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)


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


def rescale(image: Image.Image, factor: float) -> Image.Image:
    """Return the picture as one that was shrunk by `factor` and enlarged to its size again."""
    small = image.resize((round(image.width / factor), round(image.height / factor)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


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
