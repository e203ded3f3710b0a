"""A sheet under way, and what several layouts need: value axes, grids, ink that can be read."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from vlm.training.synthetic.boxes import Box
from vlm.training.synthetic.canvas import Canvas, Colour
from vlm.training.synthetic.spec import ChartSpec, NumberFormat
from vlm.training.synthetic.style import Style

READABLE = 75
"""Differences of brightness, of 255, from which print can be read."""


@dataclass
class Sheet:
    """A layout under way: the canvas, the area still free, and what has been placed."""

    canvas: Canvas
    spec: ChartSpec
    style: Style
    left: float
    top: float
    right: float
    bottom: float
    title_box: Box | None = None
    label_boxes: dict[int, Box] = field(default_factory=dict)
    value_boxes: dict[tuple[int, int], Box] = field(default_factory=dict)
    mark_boxes: dict[tuple[int, int], Box] = field(default_factory=dict)
    series_boxes: dict[int, Box] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        return 3 * self.style.scale

    def colour(self, row: int, column: int) -> Colour:
        if self.style.kind == "table":
            return self.style.value_ink  # what stands in its cells is print
        by_label = self.style.colours_by_label and len(self.spec.series_names) == 1
        return self.style.colours[column if by_label or self.style.kind == "pie" else row]


class ValueAxis(NamedTuple):
    """The numbers along an axis, from the first tick to the last."""

    ticks: list[float]
    texts: list[str]
    is_log: bool = False

    @property
    def origin(self) -> float:
        """The number that bars begin at: zero where the axis has it."""
        return self.ticks[0] if self.is_log else min(max(0.0, self.ticks[0]), self.ticks[-1])

    def fraction(self, number: float) -> float:
        """Return where `number` lies on the axis, 0 at its first tick and 1 at its last."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.is_log:
            return math.log(number / low) / math.log(high / low)
        return (number - low) / (high - low)

    def reach(self, number: float, length: float) -> float:
        """Return how many pixels `number` lies beyond the origin on an axis of `length` pixels."""
        if self.is_log:
            return self.fraction(number) * length
        # Not by `fraction`, whose rounding is another: the held-out charts stay as they are to the last bit.
        return (number - self.origin) * (length / (self.ticks[-1] - self.ticks[0]))


def value_axis(sheet: Sheet) -> ValueAxis:
    """Return the axis that holds all values; bars need one with its origin, lines may do with a part of it."""
    style, numbers, bare = sheet.style, sheet.spec.numbers, sheet.style.bare_ticks
    tallest = max(map(sum, zip(*numbers, strict=True))) if style.stacked else None
    high = (tallest or max(max(row) for row in numbers)) * style.headroom
    low = min(min(row) for row in numbers)
    if style.log_axis:
        ticks = log_ticks(low, high)
        return ValueAxis(ticks, [_tick_text(tick, tick, sheet.spec.format, bare) for tick in ticks], is_log=True)
    if low >= 0 and not style.cut_axis:
        ticks = ticks_to(high)
    else:
        lower = low - (style.headroom - 1) * (high - low)
        ticks = ticks_between(lower if low < 0 else max(lower, 0.0), high, with_zero=not style.cut_axis)
    return ValueAxis(ticks, [_tick_text(tick, ticks[1] - ticks[0], sheet.spec.format, bare) for tick in ticks])


def ticks_to(high: float, low: float = 0.0) -> list[float]:
    """Return three to seven round numbers from `low` to at least `high`."""
    step, factor = _round_step(high - low)
    num_steps = int(-(-(high - low) // (step * factor)))
    return [low + i * step * factor for i in range(num_steps + 1)]


def ticks_between(low: float, high: float, *, with_zero: bool) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, beyond zero if need be."""
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    step, factor = _round_step(high - low)
    first, last = math.floor(low / (step * factor)), math.ceil(high / (step * factor))
    return [i * step * factor for i in range(first, max(last, first + 1) + 1)]


def _round_step(span: float) -> tuple[float, float]:
    """Return a power of ten and 1, 2, 2.5 or 5: the least such product of which at most five make up `span`."""
    step = 10.0**-6
    for factor in (1, 2, 2.5, 5) * 14:
        if factor == 1:
            step *= 10
        if span / (step * factor) <= 5:
            break
    return step, factor


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten around `low` > 0 and `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _tick_text(number: float, step: float, number_format: NumberFormat, bare: bool) -> str:
    decimals = 0 if step % 1 == 0 else 1 if step * 10 % 1 < 1e-6 else 2
    return number_format.dress(f"{number:,.{decimals}f}", bare=bare)


def draw_grid(sheet: Sheet, lines: list[tuple]) -> None:
    """Draw grid lines across the ticks, and the frame of spreadsheet looks."""
    if sheet.style.grid_colour:
        for line in lines:
            sheet.canvas.shape("line", line, fill=sheet.style.grid_colour)
    crossed = sheet.style.kind == "horizontal bar" and sheet.style.values_printed and not sheet.style.values_inside
    if sheet.style.framed and not crossed:
        (x0, y0), (x1, y1) = lines[0][0], lines[-1][1]
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        sheet.canvas.shape("rectangle", box, outline=sheet.style.axis_colour)


def ink_on(colour: Colour) -> Colour:
    """Return white or near-black, whichever can be read on `colour`."""
    return (255, 255, 255) if brightness(colour) < 140 else (20, 20, 20)


def readable(colour: Colour, sheet: Sheet) -> Colour:
    """Return `colour` where it can be read on the background, or the ink of the chart."""
    contrast = abs(brightness(colour) - brightness(sheet.style.background))
    return colour if contrast >= READABLE else sheet.style.ink


def brightness(colour: Colour) -> float:
    return colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11
