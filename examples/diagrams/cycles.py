"""Diagrams of what comes round again: lives of animals and plants, the water, rocks and the moon."""

import math
from collections.abc import Callable, Sequence
from random import Random

from diagrams.questions import Asked, Diagram, about_cycle, letters_for, which_letter, without
from diagrams.sheet import BROWN, DARK_GREEN, EARTH, GREEN, INK, SKY, Colour, Sheet


def moth(random: Random) -> Diagram:
    sheet = Sheet(480, 400, style="plain", size=18)
    sheet.title("From egg to moth and back")
    for start in (-72, 18, 108, 198):
        sheet.ring_arrow(240, 215, 128, 105, start, start + 52, (150, 110, 70))
    _leaf(sheet, 240, 92, 70)
    for dx, dy in ((-22, -2), (-8, 3), (6, -3), (20, 2)):
        sheet.ellipse(240 + dx, 90 + dy, 6, 7, "ivory")
    sheet.label("eggs", 330, 66)
    for step in range(7):
        x, y = 332 + step * 14, 214 + (6 if step % 2 else -4)
        sheet.line([(x, y + 8), (x + 2, y + 20)], INK, 2)
        sheet.ellipse(x, y, 11, 13, (178, 200, 90))
        sheet.ellipse(x, y - 3, 2.5, 2.5, (120, 60, 40), None)
    sheet.ellipse(432, 208, 12, 12, (170, 110, 60))
    sheet.ellipse(436, 204, 2, 2, "black")
    sheet.label("caterpillar", 400, 262)
    sheet.line([(176, 318), (300, 312)], BROWN, 6)
    sheet.shape([(240, 316), (224, 326), (220, 352), (232, 378), (240, 384), (248, 378), (260, 352), (256, 326)], EARTH)
    for y in (340, 352, 364):
        sheet.line([(222, y - 2), (240, y + 4), (258, y - 2)], BROWN, 1.5)
    sheet.label("pupa", 312, 356)
    for side in (-1, 1):
        x = 86
        sheet.shape([(x, 206), (x + side * 30, 168), (x + side * 66, 170), (x + side * 54, 214)], (196, 170, 140))
        sheet.shape([(x, 216), (x + side * 48, 218), (x + side * 46, 246), (x + side * 14, 248)], (214, 190, 160))
        sheet.ellipse(x + side * 44, 188, 7, 7, (110, 80, 60))
        sheet.line([(x + side * 2, 188), (x + side * 12, 172), (x + side * 22, 164)], INK, 1.5)
    sheet.ellipse(86, 216, 8, 28, (130, 96, 70))
    sheet.label("adult moth", 66, 284)
    return about_cycle(sheet, random, ("eggs", "caterpillar", "pupa", "adult moth"))


def frog(random: Random) -> Diagram:
    sheet = Sheet(500, 420, (240, 248, 240), style="italic", size=18)
    places = [_around(250, 222, 168, 140, -90 + 72 * step) for step in range(5)]
    for step in range(5):
        start = -90 + 72 * step + 20
        sheet.ring_arrow(250, 222, 148, 124, start, start + 25, DARK_GREEN)
    x, y = places[0]
    for dx, dy in ((-24, 0), (-10, -10), (-8, 8), (8, -2), (22, -8), (22, 10), (6, 14)):
        sheet.ellipse(x + dx, y + dy, 10, 10, (220, 234, 240), (130, 150, 160))
        sheet.ellipse(x + dx, y + dy, 3.5, 3.5, "black", None)
    sheet.label("spawn", x, y - 40)
    x, y = places[1]
    _tadpole(sheet, x, y)
    sheet.label("tadpole", x - 4, y + 34)
    x, y = places[2]
    for side in (-1, 1):
        sheet.line(
            [(x + 2, y + side * 8), (x + 16, y + side * 22), (x + 4, y + side * 30)], DARK_GREEN, 4, smooth=False
        )
    _tadpole(sheet, x, y)
    sheet.label("tadpole with hind legs", x + 4, y + 48)
    x, y = places[3]
    sheet.line([(x + 32, y + 18), (x + 50, y + 16), (x + 62, y + 8)], GREEN, 6)
    _sitting_frog(sheet, x, y, 0.75)
    sheet.label("froglet", x, y + 48)
    x, y = places[4]
    _sitting_frog(sheet, x, y, 1.15)
    sheet.label("adult frog", x + 4, y - 66)
    return about_cycle(sheet, random, ("spawn", "tadpole", "tadpole with hind legs", "froglet", "adult frog"))


def bean(random: Random) -> Diagram:
    sheet = Sheet(500, 430, style="bold", size=16)
    sheet.title("The year of a bean")
    places = [_around(250, 234, 162, 138, -90 + 72 * step) for step in range(5)]
    for step in range(5):
        start = -90 + 72 * step + 20
        sheet.ring_arrow(250, 234, 140, 120, start, start + 30, (90, 90, 90))
    x, y = places[0]
    sheet.shape([(x - 26, y - 10), (x, y - 22), (x + 26, y - 8), (x + 22, y + 10), (x, y + 4), (x - 20, y + 10)], EARTH)
    sheet.label("seed", x, y - 38)
    x, y = places[1]
    _stalk(sheet, x, y + 20, 46, pairs=0)
    sheet.label("sprout", x, y - 52)
    x, y = places[2]
    _stalk(sheet, x, y + 34, 66, pairs=1)
    sheet.label("young plant", x + 10, y + 62)
    x, y = places[3]
    _stalk(sheet, x, y + 34, 88, pairs=2)
    for dx, dy in ((0, -60), (-14, -46), (14, -46)):
        for turn in range(5):
            sheet.ellipse(*_around(x + dx, y + dy, 6, 6, 72 * turn), 5, 5, (230, 130, 170), None)
        sheet.ellipse(x + dx, y + dy, 4, 4, (250, 220, 90), None)
    sheet.label("flowering plant", x - 10, y + 62)
    x, y = places[4]
    _stalk(sheet, x, y + 30, 86, pairs=2)
    for dx in (-16, 14):
        sheet.shape(
            [(x + dx, y - 34), (x + dx + 8, y - 16), (x + dx + 2, y + 16), (x + dx - 6, y - 10)], (160, 170, 60)
        )
    sheet.label("plant with pods", x - 4, y - 84)
    stages = ("seed", "sprout", "young plant", "flowering plant", "plant with pods")
    return about_cycle(sheet, random, stages)


def rocks(random: Random) -> Diagram:
    sheet = Sheet(520, 380, (250, 248, 244), style="plain", size=17)
    sheet.title("How rocks change")
    places = {
        "magma": (260, 330, (240, 130, 90)),
        "igneous rock": (92, 230, (206, 190, 200)),
        "sediment": (150, 86, (236, 214, 160)),
        "sedimentary rock": (370, 86, (222, 190, 140)),
        "metamorphic rock": (424, 230, (180, 200, 190)),
    }
    arrows = (
        ((190, 326), (100, 256), "cooling", (112, 310)),
        ((86, 206), (118, 110), "weathering", (52, 152)),
        ((202, 86), (284, 86), "pressing", (244, 70)),
        ((402, 110), (428, 204), "heat and pressure", (346, 152)),
        ((418, 256), (330, 326), "melting", (412, 304)),
    )
    for start, end, word, (x, y) in arrows:
        sheet.arrow([start, end], (120, 60, 40), 3, head=13)
        sheet.note(word, x, y, style="italic", size=15)
    for name, (x, y, fill) in places.items():
        sheet.boxed_label(name, x, y, fill)
    sheet.shape([(204, 352), (316, 352), (330, 366), (190, 366)], (226, 84, 36), None)
    return about_cycle(sheet, random, ("magma", "igneous rock", "sediment", "sedimentary rock", "metamorphic rock"))


def moon(random: Random) -> Diagram:
    sheet = Sheet(520, 420, (28, 34, 60), style="plain", size=16, ink=(240, 240, 230))
    stages = ("new moon", "waxing crescent", "first quarter", "waxing gibbous", "full moon", "waning gibbous")
    stages += ("last quarter", "waning crescent")
    sheet.shape([(500, 0), (520, 0), (520, 420), (500, 420)], (250, 210, 80), None, smooth=False)
    for y in (60, 135, 285, 360):
        sheet.arrow([(496, y), (446, y)], (250, 220, 120), 2.5, head=11)
    x0, y0 = 230, 210
    sheet.ellipse(x0, y0, 150, 140, None, (90, 100, 140), 1)
    sheet.ellipse(x0, y0, 30, 30, (90, 150, 210), None)
    sheet.shape([(212, 196), (230, 190), (240, 204), (228, 216), (214, 212)], GREEN, None)
    sheet.shape([(236, 218), (248, 214), (250, 226), (240, 232)], GREEN, None)
    for step, name in enumerate(stages):
        x, y = _around(x0, y0, 150, 140, -45 * step)
        _moon(sheet, x, y, 19, -45 * step)
        sheet.label(name, min(max(x, 68), 436), y - 32 if step in (1, 2, 3) else y + 33)
    sheet.ring_arrow(x0, y0, 76, 70, -30, -110, (200, 200, 220))
    return about_cycle(sheet, random, stages, "phase")


def water(random: Random) -> Diagram:
    sheet = Sheet(520, 360, SKY, style="bold", size=16)
    sheet.shape([(0, 292), (250, 290), (330, 360), (0, 360)], (90, 150, 210), None, smooth=False)
    land = [(220, 300), (300, 262), (352, 190), (404, 110), (428, 132), (462, 104), (520, 190), (520, 360), (330, 360)]
    sheet.shape(land, (168, 186, 130), smooth=False)
    for peak in ([(382, 146), (404, 110), (428, 132), (412, 142), (400, 136)], [(446, 122), (462, 104), (490, 144)]):
        sheet.shape(peak, "white", None, smooth=False)
    sheet.line([(420, 170), (380, 216), (352, 252), (310, 282), (280, 306)], (70, 130, 200), 5)
    sheet.ellipse(60, 52, 26, 26, (250, 206, 70), (230, 160, 40))
    for turn in range(0, 360, 45):
        sheet.line([_around(60, 52, 32, 32, turn), _around(60, 52, 42, 42, turn)], (230, 160, 40), 2.5)
    for x, y, size in ((200, 70, 26), (232, 58, 30), (268, 68, 26), (234, 80, 34)):
        sheet.ellipse(x, y, size, size * 0.66, "white", None)
    for x, y, size in ((346, 56, 26), (382, 46, 32), (420, 58, 26), (384, 68, 36)):
        sheet.ellipse(x, y, size, size * 0.62, (150, 158, 172), None)
    for x in (346, 362, 378, 394, 410):
        sheet.line([(x, 88), (x - 6, 102)], (60, 110, 190), 2.5)
    for x in (122, 148, 174):
        sheet.arrow([(x, 284), (x + 10, 240), (x - 4, 200), (x + 12, 150)], (210, 90, 60), 2.5, head=11)
    sheet.arrow([(298, 64), (324, 62)], INK, 2.5, head=10)
    sheet.arrow([(452, 240), (440, 290), (380, 330), (300, 338)], (50, 90, 160), 2.5, head=11)
    labels = {
        "evaporation": (62, 226),
        "condensation": (236, 118),
        "precipitation": (466, 88),
        "runoff": (286, 206),
        "groundwater": (436, 336),
    }
    for name, (x, y) in labels.items():
        sheet.label(name, x, y)
    sheet.note("sea", 120, 330, style="italic", size=17)
    letters = letters_for(sheet, random)
    names = list(labels)
    asked = [
        Asked("By which process does the sea give off vapour?", "evaporation", without(names, "evaporation")),
        Asked("By which process do clouds form?", "condensation", without(names, "condensation")),
        Asked("What flows to the sea under the ground?", "groundwater", without(names, "groundwater")),
        which_letter("Which letter marks the falling of rain and snow?", "precipitation", letters),
        which_letter("Which letter marks the streams that run down the slope?", "runoff", letters),
        Asked(
            f"What does the letter {letters['evaporation']} mark?", "evaporation", without(names, "evaporation"), True
        ),
    ]
    return Diagram(sheet=sheet, letters=letters, asked=asked)


def _around(x: float, y: float, across: float, down: float, degrees: float) -> tuple[float, float]:
    return x + across * math.cos(math.radians(degrees)), y + down * math.sin(math.radians(degrees))


def _leaf(sheet: Sheet, x: float, y: float, reach: float, fill: Colour = GREEN) -> None:
    edge = [(x - reach, y + 6), (x - reach * 0.4, y - 18), (x + reach * 0.4, y - 16), (x + reach, y)]
    sheet.shape([*edge, (x + reach * 0.3, y + 20), (x - reach * 0.5, y + 20)], fill)
    sheet.line([(x - reach, y + 6), (x + reach * 0.9, y)], DARK_GREEN, 1)


def _tadpole(sheet: Sheet, x: float, y: float) -> None:
    sheet.shape([(x, y - 8), (x + 30, y - 12), (x + 56, y), (x + 30, y + 10), (x, y + 8)], (130, 140, 110))
    sheet.ellipse(x - 14, y, 22, 15, (96, 110, 84))
    sheet.ellipse(x - 24, y - 5, 3, 3, "white")


def _sitting_frog(sheet: Sheet, x: float, y: float, scale: float) -> None:
    def at(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x + dx * scale, y + dy * scale) for dx, dy in points]

    body = [(-52, -12), (-40, -34), (-14, -30), (22, -10), (44, 14), (36, 30), (0, 30), (-26, 12)]
    sheet.shape(at(body), (124, 176, 84))
    sheet.shape(at([(8, 8), (30, -4), (46, 14), (30, 32), (56, 34), (18, 38), (6, 28)]), (108, 160, 72))
    sheet.line(at([(-22, 10), (-26, 34), (-40, 36)]), (84, 130, 60), 5 * scale, smooth=False)
    sheet.ellipse(x - 36 * scale, y - 34 * scale, 9 * scale, 9 * scale, (240, 230, 120))
    sheet.ellipse(x - 37 * scale, y - 34 * scale, 4 * scale, 4 * scale, "black", None)
    sheet.line(at([(-51, -12), (-36, -8), (-24, -14)]), INK, 1.5)


def _stalk(sheet: Sheet, x: float, ground: float, height: float, pairs: int) -> None:
    """Draw a plant with its roots, two leaves on top and `pairs` of leaves below."""
    for side in (-1, 0, 1):
        sheet.line([(x, ground), (x + side * 8, ground + 8), (x + side * 14, ground + 14)], BROWN, 1.5)
    sheet.line([(x - 40, ground), (x + 40, ground)], EARTH, 2)
    sheet.line([(x, ground), (x, ground - height)], DARK_GREEN, 3.5)
    for level in range(pairs + 1):
        y = ground - height + level * 24
        for side in (-1, 1):
            reach = 16 + 6 * level
            leaf = [
                (x, y),
                (x + side * reach * 0.5, y - 12),
                (x + side * reach, y - 6),
                (x + side * reach * 0.6, y + 3),
            ]
            sheet.shape(leaf, GREEN, DARK_GREEN, 1)


def _moon(sheet: Sheet, x: float, y: float, radius: float, place: float) -> None:
    """Draw the moon as it looks from the Earth when it stands at `place` degrees, the sun being to the right."""
    sheet.ellipse(x, y, radius, radius, (70, 76, 100), (150, 150, 160), 1)
    age = -place % 360
    if age == 0:
        return
    lit_right = age <= 180
    edge = [_around(x, y, radius, radius, turn) for turn in range(-90, 91, 10)]
    # The border of light and shadow is half an ellipse; seen before the half moon it bends towards the lit side.
    bend = math.cos(math.radians(age)) * radius
    border = [_around(x, y, bend, radius, turn) for turn in range(90, -91, -10)]
    points = [*edge, *border]
    sheet.shape(points if lit_right else [(2 * x - px, py) for px, py in points], (246, 240, 214), None, smooth=False)


CYCLES: dict[str, Callable[[Random], Diagram]] = {
    draw.__name__: draw for draw in (moth, frog, bean, rocks, moon, water)
}
