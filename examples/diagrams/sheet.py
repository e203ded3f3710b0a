"""A sheet to draw a diagram on: shapes with smooth edges, arrows, and words whose places are remembered.

Shapes are drawn three times as large and shrunk, words afterwards at their true size, so that both are crisp. The fonts
are STIX, which come with matplotlib and which the small reader has not been trained on.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FACES = {"plain": "STIXGeneral", "bold": "STIXGeneralBol", "italic": "STIXGeneralItalic"}
FINE = 3
"""How many times larger shapes are drawn."""
INK, BROWN, EARTH = (40, 40, 40), (120, 92, 70), (176, 138, 98)
GREEN, DARK_GREEN, SKY = (126, 182, 98), (74, 128, 66), (226, 240, 250)

Point = tuple[float, float]
Colour = str | tuple[int, int, int]


@functools.cache
def face(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / f"{FACES[name]}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)


class Sheet:
    """Paper of `width` × `height` pixels. All places are in pixels from its top left corner."""

    def __init__(self, width: int, height: int, paper: Colour = "white", *, style="plain", size=17, ink: Colour = INK):
        self.width, self.height, self.style, self.size, self.ink = width, height, style, size, ink
        self.boxes: dict[str, tuple[int, int, int, int]] = {}
        """Where each label stands: left, top, right, bottom."""
        self.printed: list[str] = []
        self._words: list[tuple] = []
        self._image = Image.new("RGB", (width * FINE, height * FINE), paper)
        self._draw = ImageDraw.Draw(self._image)

    def shape(
        self,
        points: Sequence[Point],
        fill: Colour | None,
        outline: Colour | None = INK,
        width: float = 1.5,
        *,
        smooth: bool = True,
    ) -> None:
        """Draw an area inside `points`, its edge a smooth curve through them or straight lines."""
        points = curve([*points, points[0]], closed=True) if smooth else [*points, points[0]]
        if fill is not None:
            self._draw.polygon(_finer(points), fill)
        if outline is not None:
            self.line(points, outline, width, smooth=False)

    def ellipse(
        self, x: float, y: float, across: float, down: float, fill: Colour | None, outline=INK, width=1.5, turn=0.0
    ) -> None:
        """Draw an ellipse around (x, y) with these radii, turned by `turn` degrees."""
        points = [turned(across * math.cos(a), down * math.sin(a), turn) for a in _angles(0, 360, 48)]
        self.shape([(x + dx, y + dy) for dx, dy in points[:-1]], fill, outline, width, smooth=False)

    def line(self, points: Sequence[Point], colour: Colour = INK, width: float = 1.5, *, smooth: bool = True) -> None:
        """Draw a line through `points`, a smooth curve or a straight one a piece."""
        points = _finer(curve(points) if smooth and len(points) > 2 else points)
        thick = max(round(width * FINE), 1)
        self._draw.line(points, colour, thick, joint="curve")
        if thick > 3:
            for x, y in (points[0], points[-1]):
                self._draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), colour)

    def arrow(self, points: Sequence[Point], colour: Colour = INK, width: float = 2, *, head: float = 9) -> None:
        """Draw a line with a head at its last point."""
        points = curve(points) if len(points) > 2 else list(points)
        tip = points[-1]
        back = next(point for point in reversed(points) if math.dist(point, tip) >= head or point == points[0])
        angle = math.degrees(math.atan2(tip[1] - back[1], tip[0] - back[0]))
        corners = [turned(-head, side * head * 0.45, angle) for side in (-1, 1)]
        stop = turned(-head * 0.8, 0, angle)
        kept = [point for point in points if math.dist(point, tip) > head] or [points[0]]
        self.line([*kept, (tip[0] + stop[0], tip[1] + stop[1])], colour, width, smooth=False)
        self.shape([tip, *((tip[0] + x, tip[1] + y) for x, y in corners)], colour, None, smooth=False)

    def ring_arrow(self, x: float, y: float, across: float, down: float, start: float, end: float, colour=INK) -> None:
        """Draw an arrow along an ellipse around (x, y), between two angles in degrees, clockwise from the right."""
        points = [(x + across * math.cos(a), y + down * math.sin(a)) for a in _angles(start, end, 14)]
        self.arrow(points, colour, 2.5, head=12)

    def label(
        self, text: str, x: float, y: float, target: Point | None = None, *, anchor: str = "mm", side: str | None = None
    ) -> None:
        """Print a label at (x, y) and remember its place; a thin line leads from it to `target`.

        anchor: Pillow's. side: where the line leaves the label, "left", "right", "top" or "bottom"; by itself from the
        end that is nearest.
        """
        left, top, right, bottom = box = self._print(text, x, y, face(self.style, self.size), anchor)
        self.boxes[text] = (left - 2, top - 2, right + 2, bottom + 2)
        if target is not None:
            middle = (left + right) / 2, (top + bottom) / 2
            ends = {
                "left": (left - 4, middle[1]),
                "right": (right + 4, middle[1]),
                "top": (middle[0], top - 3),
                "bottom": (middle[0], bottom + 3),
            }
            start = ends[side] if side else min(ends.values(), key=lambda end: math.dist(end, target))
            self.line([start, target], INK, 1)
            self.ellipse(*target, 1.8, 1.8, INK, None)
        if min(left, top) < 4 or right > self.width - 4 or bottom > self.height - 4:
            raise ValueError(f"the label {text!r} leaves the sheet: {box}")

    def boxed_label(self, text: str, x: float, y: float, fill: Colour, *, round_box: bool = False) -> None:
        """Print a label in a box or an ellipse around (x, y)."""
        across, down = face(self.style, self.size).getlength(text) / 2 + 9, self.size * 0.75
        if round_box:
            self.ellipse(x, y, across + 7, down + 3, fill)
        else:
            corners = [(x - across, y - down), (x + across, y - down), (x + across, y + down), (x - across, y + down)]
            self.shape(corners, fill, smooth=False)
        self.label(text, x, y)

    def note(self, text: str, x: float, y: float, *, anchor: str = "mm", style: str | None = None, size: int = 15):
        """Print what is no label: a title, a word beside an arrow."""
        self._print(text, x, y, face(style or self.style, size), anchor)

    def title(self, text: str) -> None:
        self.note(text, self.width / 2, 20, style="bold", size=21)

    def _print(self, text: str, x: float, y: float, font, anchor: str) -> tuple[int, int, int, int]:
        box = tuple(round(side) for side in ImageDraw.Draw(self._image).textbbox((x, y), text, font, anchor))
        self._words.append(((x, y), text, font, anchor))
        self.printed.append(text)
        return box

    def finish(self) -> Image.Image:
        """Return the picture in 64 colours, which keeps its file small."""
        image = self._image.resize((self.width, self.height), Image.Resampling.BOX)
        draw = ImageDraw.Draw(image)
        for place, text, font, anchor in self._words:
            draw.text(place, text, self.ink, font, anchor)
        return image.quantize(64, dither=Image.Dither.NONE)


def curve(points: Sequence[Point], *, closed: bool = False) -> list[Point]:
    """Return points close together on a smooth curve (Catmull-Rom) through `points`; closed: the last is the first."""
    before, after = (points[-2], points[1]) if closed else (points[0], points[-1])
    found = []
    for p, q, r, s in _quadruples([before, *points, after]):
        for step in range(10):
            t = step / 10
            found.append(
                tuple(
                    0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
                    for a, b, c, d in zip(p, q, r, s, strict=True)
                )
            )
    return [*found, tuple(points[-1])]


def _quadruples(points: Sequence[Point]):
    return zip(points, points[1:], points[2:], points[3:], strict=False)


def turned(x: float, y: float, degrees: float) -> Point:
    """Return a point turned around the origin, clockwise as the sheet's y goes down."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return x * cosine - y * sine, x * sine + y * cosine


def mirrored(points: Sequence[Point], x: float) -> list[Point]:
    """Return points mirrored at the upright line through `x`."""
    return [(2 * x - px, py) for px, py in points]


def _angles(start: float, end: float, steps: int) -> list[float]:
    return [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]


def _finer(points: Sequence[Point]) -> list[Point]:
    return [(x * FINE, y * FINE) for x, y in points]
