"""Diagrams of a living thing with its parts labelled."""

from collections.abc import Callable
from random import Random

from diagrams.questions import Diagram, about_parts
from diagrams.sheet import BROWN, DARK_GREEN, EARTH, GREEN, Sheet, mirrored


def flower(random: Random) -> Diagram:
    sheet = Sheet(460, 400, style="italic", size=18)
    x = 220
    sheet.line([(x, 392), (x - 3, 330), (x, 250)], DARK_GREEN, 9)
    sheet.shape([(x, 352), (x + 38, 312), (x + 92, 304), (x + 62, 344)], GREEN)
    sheet.line([(x, 352), (x + 40, 330), (x + 84, 308)], DARK_GREEN, 1)
    sheet.shape([(x, 240), (x - 48, 160), (x - 40, 84), (x, 62), (x + 40, 84), (x + 48, 160)], (250, 206, 222))
    petal = [(x - 4, 246), (x - 62, 232), (x - 118, 172), (x - 132, 98), (x - 88, 84), (x - 48, 128), (x - 24, 200)]
    sepal = [(x - 2, 252), (x - 40, 256), (x - 72, 236), (x - 44, 236), (x - 12, 238)]
    for points in (petal, mirrored(petal, x)):
        sheet.shape(points, (240, 158, 190))
    for points in (sepal, mirrored(sepal, x)):
        sheet.shape(points, GREEN)
    for side in (-1, 1):
        for reach, top in ((22, 150), (40, 176)):
            tip = x + side * reach
            sheet.line([(x + side * 6, 240), (x + side * (reach - 4), 205), (tip, top)], (150, 130, 40), 2.5)
            sheet.ellipse(tip, top - 8, 5, 10, (240, 180, 50), turn=side * 12)
    sheet.ellipse(x, 222, 16, 26, (196, 222, 150))
    for dx, dy in ((-5, -8), (5, -4), (-5, 4), (5, 9)):
        sheet.ellipse(x + dx, 222 + dy, 3.2, 3.2, "white", width=1)
    sheet.line([(x, 198), (x, 128)], (156, 192, 110), 5)
    sheet.ellipse(x, 122, 10, 6, (120, 160, 80))
    sheet.label("stigma", 350, 50, (x + 5, 120), anchor="lm", side="left")
    sheet.label("style", 386, 90, (x + 1, 152), anchor="lm", side="left")
    sheet.label("petal", 60, 56, (x - 104, 110))
    sheet.label("anther", 392, 132, (x + 40, 170), anchor="lm", side="left")
    sheet.label("filament", 390, 196, (x + 34, 205), anchor="lm", side="left")
    sheet.label("ovary", 388, 252, (x + 12, 226), anchor="lm", side="left")
    sheet.label("sepal", 64, 272, (x - 56, 240))
    sheet.label("leaf", 380, 346, (x + 66, 322))
    sheet.label("stem", 100, 340, (x - 3, 330))
    roles = {
        "anther": "holds the pollen",
        "stigma": "catches the pollen",
        "ovary": "holds the ovules",
        "filament": "carries the anther",
        "style": "joins the stigma to the ovary",
    }
    return about_parts(sheet, random, "the flower", roles, ("cornea", "mandible", "pulp"))


def ant(random: Random) -> Diagram:
    sheet = Sheet(500, 340, (253, 250, 240))
    body, dark = (160, 92, 60), (96, 52, 34)
    for hip, knee, foot in (
        ((212, 178), (190, 90), (150, 62)),
        ((232, 176), (236, 84), (214, 46)),
        ((252, 178), (296, 96), (318, 50)),
    ):
        for flip in (False, True):
            points = [(px, 360 - py) if flip else (px, py) for px, py in (hip, knee, foot)]
            sheet.line(points, dark, 4, smooth=False)
    for flip in (False, True):
        antenna = [(128, 170), (96, 128), (52, 116)]
        jaw = [(112, 176), (92, 168), (84, 178), (98, 180)]
        sheet.line([(px, 360 - py) if flip else (px, py) for px, py in antenna], dark, 3, smooth=False)
        sheet.shape([(px, 360 - py) if flip else (px, py) for px, py in jaw], dark)
    sheet.ellipse(375, 180, 78, 46, body)
    for dx in (-30, 4, 36):
        sheet.line([(375 + dx, 138 + abs(dx) / 6), (382 + dx, 180), (375 + dx, 222 - abs(dx) / 6)], dark, 1.5)
    sheet.ellipse(288, 180, 14, 11, body)
    sheet.ellipse(230, 180, 48, 25, body)
    sheet.ellipse(146, 180, 42, 33, body)
    for dy in (-18, 18):
        sheet.ellipse(136, 180 + dy, 7, 6, "black")
    sheet.label("antenna", 58, 88, (74, 121))
    sheet.label("eye", 118, 40, (136, 160))
    sheet.label("mandible", 52, 228, (92, 188))
    sheet.label("head", 104, 290, (150, 200))
    sheet.label("thorax", 240, 322, (228, 196))
    sheet.label("waist", 330, 278, (288, 184))
    sheet.label("abdomen", 420, 300, (390, 208))
    sheet.label("leg", 370, 70, (304, 82))
    roles = {
        "antenna": "feels and smells",
        "mandible": "bites and carries",
        "thorax": "bears the legs",
        "eye": "sees",
    }
    return about_parts(sheet, random, "the ant", roles, ("anther", "nucleus", "retina"))


def mushroom(random: Random) -> Diagram:
    sheet = Sheet(430, 400, style="italic", size=18)
    x = 210
    sheet.shape([(0, 322), (90, 314), (210, 322), (330, 312), (430, 320), (430, 400), (0, 400)], EARTH, None)
    for start, end in ((-8, -92), (-4, -46), (0, 6), (4, 56), (8, 104)):
        middle = (x + (start + end) / 2 + 10, 356)
        sheet.line([(x + start, 336), middle, (x + end, 376)], "white", 1.5)
        sheet.line([middle, (middle[0] + 22, 380)], "white", 1)
    sheet.shape([(x - 17, 172), (x - 20, 250), (x - 28, 318), (x + 28, 318), (x + 20, 250), (x + 17, 172)], "ivory")
    cup = [(x - 44, 342), (x - 42, 308), (x - 20, 318), (x, 312), (x + 20, 318), (x + 42, 308), (x + 44, 342)]
    sheet.shape(cup, (226, 214, 186))
    sheet.shape([(x - 20, 206), (x - 42, 234), (x, 240), (x + 42, 234), (x + 20, 206)], (240, 232, 206))
    sheet.ellipse(x, 160, 124, 24, (232, 206, 170))
    for step in range(-9, 10):
        sheet.line([(x + step * 2, 168), (x + step * 12.6, 160 + 22 * (1 - (step / 10) ** 2) ** 0.5)], BROWN, 1)
    cap = [(x - 126, 162), (x - 104, 100), (x - 50, 58), (x, 48), (x + 50, 58), (x + 104, 100), (x + 126, 162)]
    sheet.shape([*cap, (x + 60, 148), (x, 144), (x - 60, 148)], (206, 60, 50))
    for dx, y, size in ((-60, 98, 11), (-8, 74, 12), (46, 92, 10), (84, 126, 9), (-96, 136, 9), (4, 118, 13)):
        sheet.ellipse(x + dx, y, size * 1.2, size * 0.8, "white", None)
    for dx, y in ((72, 204), (92, 224), (80, 244), (102, 206), (112, 244)):
        sheet.ellipse(x + dx, y, 2, 2, BROWN, None)
    sheet.label("cap", 370, 54, (x + 84, 92))
    sheet.label("gills", 44, 210, (x - 74, 172))
    sheet.label("ring", 70, 262, (x - 32, 230))
    sheet.label("stalk", 350, 284, (x + 18, 268))
    sheet.label("spores", 376, 216, (x + 112, 226))
    sheet.label("volva", 46, 306, (x - 40, 326))
    sheet.label("mycelium", 372, 362, (x + 84, 368), side="left")
    roles = {
        "mycelium": "spreads through the soil",
        "gills": "hangs under the cap and makes the spores",
        "stalk": "holds up the cap",
        "volva": "is a cup around the foot",
    }
    return about_parts(sheet, random, "the mushroom", roles, ("sepal", "thorax", "gum"))


def trout(random: Random) -> Diagram:
    sheet = Sheet(520, 320, (232, 244, 250))
    fin = (206, 150, 96)
    sheet.shape([(408, 164), (478, 104), (462, 164), (480, 226)], fin)
    sheet.shape([(208, 104), (232, 58), (292, 72), (300, 108)], fin)
    sheet.shape([(360, 128), (380, 106), (392, 134)], fin)
    sheet.shape([(230, 220), (250, 262), (274, 220)], fin)
    sheet.shape([(320, 212), (346, 246), (362, 196)], fin)
    body = [(58, 166), (102, 122), (190, 98), (300, 108), (412, 152), (412, 178), (310, 216), (200, 228), (104, 206)]
    sheet.shape(body, (176, 196, 170))
    belly = [(66, 178), (120, 194), (210, 200), (320, 196), (404, 176), (310, 214), (200, 226), (104, 204)]
    sheet.shape(belly, (240, 232, 206), None)
    sheet.line([(146, 160), (230, 156), (320, 160), (408, 166)], (90, 100, 90), 1.5)
    for x, y in ((180, 124), (206, 136), (238, 120), (268, 138), (302, 126), (334, 144), (220, 174), (290, 176)):
        sheet.ellipse(x, y, 4, 4, (120, 60, 60), None)
    sheet.line([(136, 122), (154, 160), (138, 206)], BROWN, 2.5)
    sheet.shape([(160, 186), (196, 204), (198, 184)], fin)
    sheet.ellipse(98, 152, 10, 10, "white")
    sheet.ellipse(98, 152, 5, 5, "black")
    sheet.line([(58, 168), (78, 176), (90, 176)], BROWN, 2)
    sheet.label("dorsal fin", 196, 36, (250, 78))
    sheet.label("tail fin", 470, 60, (456, 138))
    sheet.label("lateral line", 386, 76, (330, 161))
    sheet.label("eye", 62, 80, (96, 142))
    sheet.label("gill cover", 92, 260, (140, 190))
    sheet.label("pectoral fin", 170, 292, (184, 196))
    sheet.label("pelvic fin", 292, 292, (254, 246))
    sheet.label("anal fin", 410, 262, (346, 230))
    roles = {
        "tail fin": "drives it forward",
        "lateral line": "feels the currents along its side",
        "gill cover": "shields the organs it breathes with",
        "eye": "sees",
    }
    return about_parts(sheet, random, "the trout", roles, ("antenna", "stalk", "mandible"))


CREATURES: dict[str, Callable[[Random], Diagram]] = {draw.__name__: draw for draw in (flower, ant, mushroom, trout)}
