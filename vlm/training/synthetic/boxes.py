"""Where things stand on a sheet: characters, boxes, and the strips of text that is turned."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels."""


class Character(NamedTuple):
    """A printed character and its centre in pixels: x half way through its advance, y half way up a capital."""

    char: str
    x: float
    y: float


class Strip(NamedTuple):
    """Where a line of turned text lies: along its middle from (x, y) on, `length` pixels in the direction of `turn`.

    turn: counter-clockwise, in radians. half_height: of the print, in pixels to both sides of the middle.
    """

    x: float
    y: float
    turn: float
    length: float
    half_height: float

    def at(self, along: float, across: float = 0.0) -> tuple[float, float]:
        """Return the (x, y) that lies `along` pixels on and `across` pixels below the middle as the text is read."""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return self.x + along * cos + across * sin, self.y - along * sin + across * cos

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return how far along the middle (x, y) lies, and how far below it: what `at` is given."""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return (x - self.x) * cos - (y - self.y) * sin, (x - self.x) * sin + (y - self.y) * cos

    def holds(self, x: float, y: float) -> bool:
        along, across = self.place(x, y)
        return 0 <= along <= self.length and abs(across) <= self.half_height

    def touches(self, other: "Strip") -> bool:
        """Say whether another strip turned as this one has print where this one has."""
        along, across = self.place(other.x, other.y)
        return abs(across) < self.half_height + other.half_height and -other.length < along < self.length


class TurnedBox(tuple):
    """The upright box (x0, y0, x1, y1) around a line of turned text, which also knows the strip that the text fills.

    Labels side by side lie in one another's upright boxes: `characters_in` tells whose characters are whose.
    """

    strip: Strip

    def __new__(cls, strip: Strip) -> "TurnedBox":
        sides = (-strip.half_height, strip.half_height)
        xs, ys = zip(*(strip.at(along, across) for along in (0.0, strip.length) for across in sides), strict=True)
        box = super().__new__(cls, (min(xs), min(ys), max(xs), max(ys)))
        box.strip = strip
        return box

    def __getnewargs__(self) -> tuple[Strip]:
        return (self.strip,)


def characters_in(characters: Sequence[Character], box: Box) -> list[Character]:
    """Return the characters whose centres lie in a box, in the order in which they are given."""
    x0, y0, x1, y1 = box
    inside = [each for each in characters if x0 <= each.x <= x1 and y0 <= each.y <= y1]
    return [each for each in inside if box.strip.holds(each.x, each.y)] if isinstance(box, TurnedBox) else inside


def shrunk(box: Box, factor: float) -> Box:
    """Return a box with all its measures divided by `factor`."""
    if isinstance(box, TurnedBox):
        x, y, turn, length, half_height = box.strip
        return TurnedBox(Strip(x / factor, y / factor, turn, length / factor, half_height / factor))
    return tuple(side / factor for side in box)


def around(boxes: list[Box]) -> Box:
    """Return the smallest box that holds all `boxes`."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)
