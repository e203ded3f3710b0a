"""Pages full of print, from which the encoder learns its letters: many more characters a picture than on a chart."""

from random import Random

import numpy as np
from PIL import Image

from vlm.training.synthetic.canvas import Canvas, Character, Colour, DoesNotFit, age
from vlm.training.synthetic.fonts import Face, find_fonts, load_face
from vlm.training.synthetic.spec import draw_number_format
from vlm.training.synthetic.words import WORD_KINDS, YEARS, Split, in_split, pseudo_word, random_string, words

LISTS = (*WORD_KINDS, "month")
PAPERS: tuple[Colour, ...] = ((255, 255, 255),) * 5 + ((244, 244, 240), (235, 242, 250), (30, 34, 50), (166, 9, 9))
INKS: tuple[Colour, ...] = ((0, 0, 0), (0, 0, 0), (60, 60, 60), (100, 100, 100), (40, 118, 221), (166, 9, 9))
PALE_INKS: tuple[Colour, ...] = ((255, 255, 255), (235, 235, 235))
BANDS: tuple[Colour, ...] = ((40, 118, 221), (15, 40, 62), (44, 160, 44), (148, 103, 189), (255, 192, 0))


def draw_page(
    rng: np.random.Generator, size: int | tuple[int, int], *, split: Split = "train"
) -> tuple[Image.Image, list[Character]]:
    """Return a page of blocks of print, each in a font, size and ink of its own, and where each character is.

    size: the side of a square in pixels, or (height, width). split: whose words and fonts are printed.
    """
    height, width = (size, size) if isinstance(size, int) else size
    random = Random(int(rng.integers(2**63)))
    scale = random.choice((1.5, 2.0)) if random.random() < 0.3 else 1.0
    paper = random.choice(PAPERS)
    canvas = Canvas(round(width * scale), round(height * scale), paper)
    top = random.uniform(1, 10) * scale
    while top < canvas.height - 10 * scale:
        top = _place_block(canvas, random, top, scale, split, dark=sum(paper) < 300)
    image = canvas.finish()
    if scale != 1:
        image = image.resize((width, height), random.choice((Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)))
    characters = [Character(char, x / scale, y / scale) for char, x, y in canvas.characters]
    return age(image, random) if random.random() < 0.2 else image, characters


def _place_block(canvas: Canvas, random: Random, top: float, scale: float, split: Split, *, dark: bool) -> float:
    """Fill one to six lines from `top` on and return where the next block may begin."""
    fonts = find_fonts((), held_out=split == "held_out")
    path = random.choice(fonts)
    size = round(2 * random.choice((random.uniform(8, 13), random.uniform(8, 13), random.uniform(10, 22))) * scale) / 2
    face = load_face(path, size, random.choice((0.0, 0.0, 0.35)) * scale if path == "" else 0.0)
    pitch = face.line_height + random.uniform(0, 5) * scale
    num_lines = random.randint(1, 6)
    pale = dark
    if not dark and random.random() < 0.15:
        # White print on a band of colour, as inside bars.
        bottom = top + num_lines * pitch + face.descent
        canvas.shape("rectangle", (0, top, canvas.width, bottom), fill=random.choice(BANDS))
        pale = True
    ink = random.choice(PALE_INKS if pale else INKS)
    for _ in range(num_lines):
        _place_line(canvas, random, top + face.ascent, face, ink, scale, split)
        top += pitch
    return top + random.uniform(1, 6) * scale


def _place_line(
    canvas: Canvas, random: Random, baseline: float, face: Face, ink: Colour, scale: float, split: Split
) -> None:
    x = random.uniform(1, 30) * scale
    while x < canvas.width - 8 * scale:
        text = _text(random, split)
        try:
            box = canvas.text(text, x, baseline, face, ink)
        except DoesNotFit:
            if len(text) == 1:
                return
            try:
                box = canvas.text(text[: max(1, len(text) // 3)], x, baseline, face, ink)
            except DoesNotFit:
                return
        x = box[2] + random.choice((face.advance(" ") + 2, random.uniform(4, 40) * scale))


def _text(random: Random, split: Split) -> str:
    """Draw a word, a name or a number as charts print them."""
    draw = random.random()
    if draw < 0.2:
        return random.choice(words(random.choice(LISTS), split))
    if draw < 0.35:
        return pseudo_word(random, split)
    if draw < 0.5:
        return random_string(random, split)
    if draw < 0.6:
        return str(random.randint(*YEARS[split]))
    if draw < 0.65:
        return "".join(random.choice("!\"#$%&'()*+,-./:;<=>?@[]_{|}~") for _ in range(random.randint(1, 3)))
    number_format, low, high = draw_number_format(random, random.choice(("count", "amount", "rate")))
    while True:
        number = round(random.uniform(low, high), number_format.decimals)
        if in_split(f"{number:.{number_format.decimals}f}".replace(".", ""), split):
            return number_format.print(number)
