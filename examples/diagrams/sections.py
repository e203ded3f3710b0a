"""Diagrams of something cut open, with its parts labelled."""

from collections.abc import Callable
from random import Random

from diagrams.questions import Diagram, about_parts
from diagrams.sheet import Sheet, mirrored, turned


def animal_cell(random: Random) -> Diagram:
    sheet = Sheet(480, 380, style="plain", size=16)
    blob = [(120, 90), (220, 62), (322, 84), (372, 160), (352, 262), (262, 316), (160, 302), (96, 240), (88, 150)]
    sheet.shape(blob, (250, 232, 200), (150, 98, 60), 4)
    sheet.ellipse(218, 182, 52, 47, (196, 170, 220), (110, 80, 140), 2.5)
    sheet.ellipse(226, 176, 16, 15, (120, 84, 160))
    for x, y, turn in ((146, 116, -30), (318, 236, 40), (170, 268, 10)):
        sheet.ellipse(x, y, 28, 13, (244, 160, 120), turn=turn)
        zigzag = [turned(step * 7 - 21, 6 if step % 2 else -6, turn) for step in range(7)]
        sheet.line([(x + dx, y + dy) for dx, dy in zigzag], (170, 70, 40), 1.5)
    sheet.ellipse(318, 142, 24, 20, (190, 226, 242), (70, 120, 160))
    sheet.ellipse(240, 276, 12, 12, (220, 110, 120))
    for level in range(4):
        reach = 26 - 4 * level
        y = 196 + 9 * level
        sheet.line([(126 - reach, y - 5), (126, y + 2), (126 + reach, y - 5)], (90, 140, 90), 4)
    for x, y in ((250, 100), (266, 112), (282, 98), (300, 186), (288, 206), (310, 196), (140, 164), (280, 250)):
        sheet.ellipse(x, y, 3, 3, (60, 60, 110), None)
    sheet.label("nucleus", 424, 60, (248, 150))
    sheet.label("nucleolus", 60, 40, (220, 170))
    sheet.label("membrane", 52, 330, (118, 272))
    sheet.label("vacuole", 430, 120, (330, 142))
    sheet.label("ribosomes", 424, 188, (311, 195))
    sheet.label("mitochondrion", 412, 258, (330, 242))
    sheet.label("lysosome", 334, 350, (244, 280))
    sheet.label("cytoplasm", 180, 354, (206, 294))
    roles = {
        "nucleus": "holds the chromosomes",
        "mitochondrion": "sets energy free from sugar",
        "membrane": "lets substances in and out",
        "ribosomes": "build proteins",
        "lysosome": "breaks down worn-out matter",
    }
    return about_parts(sheet, random, "the cell", roles, ("stigma", "crater", "dorsal fin"))


def tooth(random: Random) -> Diagram:
    sheet = Sheet(460, 400, (255, 252, 250))
    x = 220
    sheet.shape([(70, 190), (370, 190), (370, 390), (70, 390)], (236, 200, 160), None, smooth=False)
    for left, right in ((70, 160), (280, 370)):
        sheet.shape([(left, 178), (right, 178), (right, 222), (left, 222)], (240, 140, 146), None, smooth=False)
    half = [(x, 66), (x - 34, 54), (x - 66, 70), (x - 78, 120), (x - 66, 180), (x - 64, 260), (x - 44, 356)]
    half += [(x - 34, 356), (x - 24, 280), (x, 240)]
    sheet.shape(half + mirrored(half, x)[::-1], (250, 240, 206))
    top = [(x, 62), (x - 34, 50), (x - 70, 66), (x - 84, 120), (x - 70, 182), (x - 60, 180), (x - 66, 122)]
    top += [(x - 54, 82), (x - 32, 70), (x, 82)]
    sheet.shape(top + mirrored(top, x)[::-1], (232, 240, 248), (110, 120, 140))
    pulp = [(x, 150), (x - 26, 128), (x - 36, 150), (x - 44, 240), (x - 42, 344), (x - 36, 344), (x - 30, 250)]
    sheet.shape([*pulp, (x, 206), *mirrored(pulp, x)[::-1]], (240, 120, 120), (150, 50, 50))
    for side in (-1, 1):
        sheet.line([(x + side * 20, 160), (x + side * 34, 230), (x + side * 39, 350), (x, 384)], (244, 206, 60), 2.5)
    sheet.label("enamel", 390, 58, (x + 74, 92))
    sheet.label("dentine", 404, 110, (x + 52, 130))
    sheet.label("pulp", 404, 158, (x + 22, 164))
    sheet.label("gum", 38, 160, (100, 196))
    sheet.label("root", 412, 330, (x + 56, 316))
    sheet.label("jawbone", 44, 260, (112, 290), side="right")
    sheet.label("nerve", 420, 376, (x + 12, 378), side="left")
    sheet.label("crown", 60, 70, (x - 79, 108))
    roles = {
        "enamel": "is the hard outer cover",
        "nerve": "carries the feeling of pain",
        "root": "is anchored in the jawbone",
        "pulp": "is soft and full of blood vessels",
    }
    return about_parts(sheet, random, "the tooth", roles, ("iris", "stalk", "crust"))


def eye(random: Random) -> Diagram:
    sheet = Sheet(480, 360, style="plain", size=17)
    x, y = 250, 180
    sheet.shape([(350, 168), (420, 156), (420, 204), (348, 200)], (246, 206, 90), smooth=False)
    sheet.ellipse(x, y, 112, 112, (250, 250, 250), (150, 120, 110), 3)
    sheet.ellipse(x, y, 106, 106, None, (206, 70, 60), 4)
    sheet.ellipse(x, y, 100, 100, (226, 240, 250), (240, 170, 60), 4)
    sheet.shape(
        [(166, 118), (132, 146), (122, 180), (132, 214), (166, 242), (160, 180)], (206, 232, 244), (70, 110, 150)
    )
    for side in (-1, 1):
        sheet.line([(170, y + side * 62), (168, y + side * 22)], (60, 120, 80), 7)
    sheet.ellipse(188, y, 17, 42, (180, 214, 236), (60, 90, 140), 2)
    sheet.line([(170, 120), (188, 138)], (150, 90, 80), 3)
    sheet.line([(170, 240), (188, 222)], (150, 90, 80), 3)
    sheet.label("cornea", 56, 120, (130, 152))
    sheet.label("pupil", 46, 180, (167, 181), side="right")
    sheet.label("iris", 60, 240, (168, 218))
    sheet.label("lens", 128, 46, (188, 156))
    sheet.label("retina", 412, 70, (322, 112))
    sheet.label("optic nerve", 424, 240, (392, 188))
    sheet.label("vitreous body", 280, 336, (264, 220), side="top")
    roles = {
        "retina": "turns light into signals",
        "optic nerve": "carries signals to the brain",
        "lens": "focuses the light",
        "iris": "widens and narrows the pupil",
        "cornea": "is the clear window in front",
    }
    return about_parts(sheet, random, "the eye", roles, ("enamel", "nucleolus", "pelvic fin"))


def volcano(random: Random) -> Diagram:
    sheet = Sheet(500, 400, (226, 238, 248))
    lava = (226, 84, 36)
    sheet.shape([(0, 300), (500, 300), (500, 400), (0, 400)], (170, 130, 96), None, smooth=False)
    slope = [(60, 300), (140, 238), (190, 180), (224, 126), (236, 134), (262, 134), (276, 126), (310, 182), (446, 300)]
    sheet.shape(slope, (146, 128, 116), smooth=False)
    for step in (1, 2):
        inset = 22 * step
        left, right = (60 + 2.2 * inset, 300), (446 - 2.2 * inset, 300)
        sheet.line([left, (190 + inset * 0.6, 196 + inset)], (112, 94, 84), 2, smooth=False)
        sheet.line([right, (312 - inset * 0.6, 198 + inset)], (112, 94, 84), 2, smooth=False)
    sheet.ellipse(250, 358, 112, 32, lava, (120, 40, 20))
    sheet.shape([(240, 340), (242, 132), (257, 132), (262, 340)], lava, None, smooth=False)
    sheet.line([(252, 262), (300, 226), (340, 206)], lava, 7)
    sheet.line([(262, 134), (284, 150), (318, 204), (352, 232), (392, 262)], lava, 8)
    for x, y, size in ((250, 92, 30), (222, 72, 26), (282, 66, 32), (252, 46, 34), (206, 40, 22), (310, 36, 22)):
        sheet.ellipse(x, y, size, size * 0.72, (150, 150, 156), None)
    sheet.label("ash cloud", 92, 60, (206, 60))
    sheet.label("crater", 116, 128, (246, 132))
    sheet.label("main vent", 88, 186, (248, 212))
    sheet.label("side vent", 420, 150, (290, 233))
    sheet.label("lava flow", 436, 206, (372, 246))
    sheet.label("magma chamber", 424, 384, (320, 366))
    sheet.label("crust", 54, 350, (110, 330))
    roles = {
        "magma chamber": "stores molten rock underground",
        "main vent": "leads straight up to the crater",
        "lava flow": "runs down the slope",
        "ash cloud": "drifts in the air",
    }
    return about_parts(sheet, random, "the volcano", roles, ("retina", "enamel", "outer core"))


def earth(random: Random) -> Diagram:
    sheet = Sheet(430, 360, style="bold", size=17)
    x, y = 165, 185
    shells = ((140, (110, 160, 200)), (131, (120, 88, 60)), (124, (214, 104, 60)), (80, (244, 170, 70)))
    for radius, colour in (*shells, (38, (255, 232, 140))):
        sheet.ellipse(x, y, radius, radius, colour)
    sheet.label("hydrosphere", 350, 60, (x + 92, y - 102), anchor="mm", side="left")
    sheet.label("crust", 370, 108, (x + 108, y - 66), side="left")
    sheet.label("mantle", 376, 166, (x + 100, y - 16), side="left")
    sheet.label("outer core", 366, 224, (x + 58, y + 22), side="left")
    sheet.label("inner core", 366, 288, (x + 14, y + 16), side="left")
    sheet.title("Shells of the Earth")
    roles = {
        "crust": "is the thin solid outside under the oceans",
        "mantle": "lies between the crust and the outer core",
        "inner core": "is at the very middle",
        "outer core": "encloses the inner core",
    }
    return about_parts(sheet, random, "the Earth", roles, ("magma chamber", "cytoplasm", "gill cover"))


SECTIONS: dict[str, Callable[[Random], Diagram]] = {
    draw.__name__: draw for draw in (animal_cell, tooth, eye, volcano, earth)
}
