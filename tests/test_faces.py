"""Print that is put together from single characters is, to the grey level, what Pillow draws."""

from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm.training.synthetic.canvas import Canvas
from vlm.training.synthetic.fonts import find_fonts, load_face

TEXTS = ("Average 12,345.6%", "AV To. WAY", "fjord (quay) 'j'", "i", " ", "", "~{|}^@#&")
PATHS = [find_fonts((), held_out) for held_out in (False, True)]
SOME = [path for paths in PATHS for path in Random(0).sample(paths, min(6, len(paths)))]


def by_pillow(text: str, face, ink: int) -> np.ndarray:
    image = Image.new("L", (260, 60), 90)
    ImageDraw.Draw(image).text((20, 40), text, ink, face.font, "ls")
    return np.asarray(image)


@pytest.mark.parametrize("path", ["", *SOME])
def test_a_text_is_drawn_as_pillow_draws_it(path):
    drawn = 0
    for size in (8.5, 11, 16.5):
        face = load_face(path, size)
        for text in TEXTS:
            canvas = Canvas(260, 60, (90, 90, 90))
            canvas.text(text, 20, 40, face, (200, 200, 200))
            found = np.asarray(canvas.finish().convert("L"))
            assert np.array_equal(found, by_pillow(text, face, 200))
            drawn += bool((found != 90).any())
    assert drawn == 15


def test_bold_print_is_left_to_pillow():
    plain, bold = (load_face("", 14.0, strength) for strength in (0.0, 0.7))
    pictures = []
    for face in (plain, bold):
        canvas = Canvas(260, 60, (255, 255, 255))
        canvas.text("Harbour", 20, 40, face, (0, 0, 0))
        pictures.append(np.asarray(canvas.finish()).astype(int))
    assert pictures[1].sum() < pictures[0].sum()
