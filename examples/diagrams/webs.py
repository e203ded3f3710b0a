"""Diagrams of who eats whom: chains, webs and a pyramid, with an arrow from what is eaten to who eats it."""

import math
from collections.abc import Callable, Mapping
from random import Random

from diagrams.questions import Asked, Diagram, about_web, letters_for, which_letter, without
from diagrams.sheet import DARK_GREEN, EARTH, GREEN, SKY, Colour, Sheet

LEVELS = ((190, 222, 150), (250, 226, 150), (246, 190, 130), (232, 150, 140))
"""Fill of those who eat nothing, and of those one, two and three steps above."""


def meadow(random: Random) -> Diagram:
    sheet = Sheet(500, 380, style="plain", size=17)
    sheet.title("Who eats whom in the meadow")
    sheet.shape([(0, 346), (120, 336), (250, 344), (380, 336), (500, 346), (500, 380), (0, 380)], GREEN, None)
    places = {
        "clover": (150, 330),
        "grass": (350, 330),
        "cricket": (80, 240),
        "vole": (240, 240),
        "rabbit": (420, 240),
        "shrew": (110, 150),
        "owl": (180, 66),
        "stoat": (380, 100),
    }
    eats = {
        "cricket": ["clover"],
        "vole": ["clover", "grass"],
        "rabbit": ["grass"],
        "shrew": ["cricket"],
        "owl": ["shrew", "vole"],
        "stoat": ["vole", "rabbit"],
    }
    return _web(sheet, random, places, eats)


def shore(random: Random) -> Diagram:
    sheet = Sheet(520, 400, SKY, style="italic", size=18)
    sheet.shape([(0, 130), (130, 138), (260, 130), (390, 138), (520, 130), (520, 400), (0, 400)], (176, 212, 234), None)
    places = {
        "plankton": (100, 366),
        "kelp": (400, 366),
        "mussel": (90, 270),
        "krill": (240, 286),
        "urchin": (420, 276),
        "crab": (70, 186),
        "herring": (230, 196),
        "otter": (420, 170),
        "gull": (150, 60),
    }
    eats = {
        "mussel": ["plankton"],
        "krill": ["plankton"],
        "urchin": ["kelp"],
        "crab": ["mussel"],
        "herring": ["krill"],
        "otter": ["urchin"],
        "gull": ["crab", "herring"],
    }
    return _web(sheet, random, places, eats, round_boxes=True)


def desert(random: Random) -> Diagram:
    sheet = Sheet(520, 370, (253, 244, 224), style="bold", size=16)
    sheet.ellipse(470, 44, 26, 26, (250, 206, 70), None)
    sheet.shape([(0, 338), (170, 324), (330, 340), (520, 322), (520, 370), (0, 370)], (236, 206, 150), None)
    places = {
        "cactus": (90, 320),
        "mesquite": (350, 320),
        "kangaroo rat": (100, 230),
        "locust": (270, 240),
        "jackrabbit": (440, 230),
        "lizard": (290, 156),
        "rattlesnake": (110, 120),
        "coyote": (420, 110),
        "hawk": (240, 46),
    }
    eats = {
        "kangaroo rat": ["cactus"],
        "locust": ["mesquite"],
        "jackrabbit": ["mesquite"],
        "lizard": ["locust"],
        "rattlesnake": ["kangaroo rat", "lizard"],
        "coyote": ["jackrabbit"],
        "hawk": ["rattlesnake", "lizard"],
    }
    return _web(sheet, random, places, eats)


def forest(random: Random) -> Diagram:
    sheet = Sheet(480, 420, style="plain", size=17)
    for x in (40, 440):
        sheet.shape([(x - 7, 330), (x + 7, 330), (x + 8, 416), (x - 8, 416)], EARTH, smooth=False)
        for top, reach in ((150, 22), (200, 30), (256, 36)):
            points = [(x, top), (x + reach, top + 84), (x - reach, top + 84)]
            sheet.shape(points, DARK_GREEN, smooth=False)
    places = {
        "acorns": (160, 390),
        "bramble": (320, 390),
        "squirrel": (140, 290),
        "caterpillar": (240, 316),
        "deer": (350, 290),
        "titmouse": (240, 206),
        "marten": (140, 116),
        "wolf": (360, 116),
        "sparrowhawk": (240, 50),
    }
    eats = {
        "squirrel": ["acorns"],
        "caterpillar": ["bramble"],
        "deer": ["bramble"],
        "titmouse": ["caterpillar"],
        "marten": ["squirrel", "titmouse"],
        "wolf": ["deer"],
        "sparrowhawk": ["titmouse"],
    }
    return _web(sheet, random, places, eats, round_boxes=True)


def pond_chain(random: Random) -> Diagram:
    names = ("duckweed", "water flea", "minnow", "perch", "heron")
    sheet = Sheet(600, 230, (236, 246, 250), style="italic", size=18)
    sheet.title("A chain in the pond")
    for step, name in enumerate(names):
        x = 62 + 118 * step
        if step:
            sheet.arrow([(x - 74, 120), (x - 46, 120)], (60, 60, 60), 3, head=12)
        _ICONS[name](sheet, x, 120)
        sheet.label(name, x, 186)
    return _chain(sheet, random, names)


def polar_chain(random: Random) -> Diagram:
    names = ("diatoms", "krill", "squid", "penguin", "leopard seal", "orca")
    sheet = Sheet(380, 420, (244, 249, 253), style="bold", size=16)
    for step, name in enumerate(names):
        y = 388 - 70 * step
        x = 110 if step % 2 else 270
        if step:
            before = 380 - x
            sheet.arrow([(before, y + 54), (x, y + 18)], (40, 90, 150), 3, head=12)
        sheet.boxed_label(name, x, y, (206 - 12 * step, 230 - 10 * step, 248), round_box=True)
    return _chain(sheet, random, names)


def pyramid(random: Random) -> Diagram:
    names = ("oak leaves", "aphids", "ladybirds", "wrens", "goshawk")
    sheet = Sheet(500, 380, style="plain", size=18)
    sheet.title("A pyramid of numbers")
    for step, name in enumerate(names):
        bottom, top = 366 - 64 * step, 302 - 64 * step
        low, high = 220 - 40 * step, 180 - 40 * step
        points = [(240 - low, bottom), (240 + low, bottom), (240 + high, top), (240 - high, top)]
        sheet.shape(points, (*LEVELS, (200, 170, 210))[step], smooth=False)
        if step < 4:
            sheet.label(name, 240, (bottom + top) / 2)
        else:
            sheet.label(name, 350, 70, (240, 90))
    sheet.arrow([(474, 356), (474, 130)], (110, 110, 110), 3, head=13)
    sheet.note("eaten by", 462, 112, style="italic", size=16)
    return _chain(sheet, random, names)


def _web(
    sheet: Sheet, random: Random, places: Mapping[str, tuple[float, float]], eats: Mapping, *, round_boxes: bool = False
) -> Diagram:
    """Draw the arrows, then the names over their ends, and ask."""
    for hunter, prey in eats.items():
        for name in prey:
            (x0, y0), (x1, y1) = places[name], places[hunter]
            length = math.dist((x0, y0), (x1, y1))
            dx, dy = (x1 - x0) / length, (y1 - y0) / length
            # Boxes are wide and low: an arrow that comes from the side must stop further away.
            stop = min(20 / max(abs(dy), 0.01), 56)
            sheet.arrow([(x0 + dx * 16, y0 + dy * 16), (x1 - dx * stop, y1 - dy * stop)], (90, 90, 90), 2, head=11)
    for name, (x, y) in places.items():
        sheet.boxed_label(name, x, y, LEVELS[_level(name, eats)], round_box=round_boxes)
    return about_web(sheet, random, eats)


def _level(name: str, eats: Mapping) -> int:
    return min(1 + max((_level(prey, eats) for prey in eats.get(name, ())), default=-1), 3)


def _chain(sheet: Sheet, random: Random, names: tuple[str, ...]) -> Diagram:
    """Ask about names each of which eats the one before."""
    letters = letters_for(sheet, random)
    place, second, third = (random.randrange(1, len(names)) for _ in range(3))
    eater, food, eaten = names[place], names[place - 1], names[second - 1]
    asked = [
        Asked(f"Which of these is the food of the {eater}?", food, without(names, food, eater)),
        Asked(f"Which of these feeds on the {eaten}?", names[second], without(names, names[second], eaten)),
        Asked("Which of these is a producer?", names[0], without(names, names[0])),
        Asked("Which of these is eaten by none of the others?", names[-1], without(names, names[-1])),
        which_letter("Which letter stands for the producer?", names[0], letters),
        Asked(
            f"Which letter stands for what {letters[names[third]]} eats?",
            letters[names[third - 1]],
            [letters[name] for name in without(names, names[third - 1], names[third])],
            True,
        ),
    ]
    return Diagram(sheet=sheet, letters=letters, asked=asked)


def _duckweed(sheet: Sheet, x: float, y: float) -> None:
    sheet.line([(x - 40, y + 2), (x + 40, y + 2)], (120, 170, 210), 2)
    for dx, dy in ((-24, 0), (-8, -4), (8, 1), (24, -3), (0, 6)):
        sheet.ellipse(x + dx, y + dy, 9, 5, GREEN)
        sheet.line([(x + dx, y + dy + 5), (x + dx - 2, y + dy + 24)], DARK_GREEN, 1)


def _water_flea(sheet: Sheet, x: float, y: float) -> None:
    for side in (-1, 1):
        sheet.line([(x - 8, y - 16), (x - 8 + side * 22, y - 34), (x - 8 + side * 34, y - 30)], (120, 110, 80), 2)
    body = [(x - 16, y - 18), (x + 2, y - 20), (x + 20, y), (x + 16, y + 22), (x + 30, y + 38), (x + 2, y + 26)]
    sheet.shape([*body, (x - 12, y + 4)], (236, 226, 180))
    sheet.ellipse(x - 9, y - 12, 3.5, 3.5, "black")
    for dy in (2, 12):
        sheet.ellipse(x + 8, y + dy, 5, 5, (190, 120, 90))


def _minnow(sheet: Sheet, x: float, y: float) -> None:
    _swimmer(sheet, x, y, 0.7, (190, 200, 206), stripes=0)


def _perch(sheet: Sheet, x: float, y: float) -> None:
    _swimmer(sheet, x, y, 0.95, (170, 180, 90), stripes=4)


def _swimmer(sheet: Sheet, x: float, y: float, scale: float, fill: Colour, stripes: int) -> None:
    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + dx * scale, y + dy * scale) for dx, dy in points]

    sheet.shape(at((22, 0), (42, -18), (36, 0), (42, 18)), (220, 130, 80))
    sheet.shape(at((-10, -14), (0, -30), (16, -10)), (220, 130, 80))
    sheet.shape(at((-42, 2), (-20, -14), (6, -16), (28, 0), (6, 16), (-20, 14)), fill)
    for step in range(stripes):
        sheet.line(at((-14 + step * 10, -12), (-15 + step * 10, 8)), (80, 90, 40), 3)
    sheet.ellipse(x - 30 * scale, y - 2 * scale, 3, 3, "black")


def _heron(sheet: Sheet, x: float, y: float) -> None:
    for dx in (-2, 8):
        sheet.line([(x + dx, y + 16), (x + dx + 2, y + 50)], (120, 100, 60), 2)
    sheet.line([(x - 12, y + 2), (x - 22, y - 14), (x - 10, y - 28), (x - 16, y - 42)], (170, 180, 190), 6)
    sheet.shape([(x - 16, y + 2), (x + 6, y - 10), (x + 34, y + 12), (x + 6, y + 20)], (150, 166, 180))
    sheet.ellipse(x - 18, y - 44, 8, 6, (240, 240, 240))
    sheet.shape([(x - 24, y - 47), (x - 48, y - 40), (x - 24, y - 41)], (240, 180, 60), smooth=False)
    sheet.ellipse(x - 19, y - 45, 1.5, 1.5, "black", None)


_ICONS: dict[str, Callable[[Sheet, float, float], None]] = {
    "duckweed": _duckweed,
    "water flea": _water_flea,
    "minnow": _minnow,
    "perch": _perch,
    "heron": _heron,
}

WEBS: dict[str, Callable[[Random], Diagram]] = {
    draw.__name__: draw for draw in (meadow, shore, desert, forest, pond_chain, polar_chain, pyramid)
}
