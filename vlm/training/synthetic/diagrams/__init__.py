"""Diagrams as in school books, drawn from a seed: chains, cycles and webs of boxes, and figures with named parts.

They are for training alone. The diagrams that the reader is measured with (`examples/diagrams`) are others, drawn by
other code, and what they show is not drawn here.
"""

from collections.abc import Callable
from random import Random

import numpy as np

from vlm.training.synthetic.canvas import Canvas, Colour, DoesNotFit, age
from vlm.training.synthetic.diagrams.asking import ask_about
from vlm.training.synthetic.diagrams.drawing import Diagram, Drawing, Print
from vlm.training.synthetic.diagrams.graphs import draw_chain, draw_cycle, draw_web
from vlm.training.synthetic.diagrams.parts import draw_parts
from vlm.training.synthetic.fonts import find_fonts, load_face
from vlm.training.synthetic.style import draw_shape
from vlm.training.synthetic.words import Split, pseudo_word, words

__all__ = ["Diagram", "draw_diagram"]

MAX_TRIES = 200
LISTS = ("country", "place", "product", "sector", "person", "company")
PAPERS: tuple[Colour, ...] = ((255, 255, 255), (255, 255, 255), (250, 250, 245), (238, 244, 250), (252, 246, 230))
INKS: tuple[Colour, ...] = ((0, 0, 0), (0, 0, 0), (40, 40, 60), (70, 50, 30))
SHARE_ONLY_LETTERS, SHARE_ONLY_WORDS = 0.2, 0.35
"""Of the diagrams; in the others each part has both."""

_KINDS: tuple[Callable[[Random, Canvas, Print, list[str]], Drawing], ...] = (
    draw_chain,
    draw_cycle,
    draw_web,
    draw_parts,
)


def draw_diagram(
    rng: np.random.Generator, size: int | tuple[int, int], *, split: Split = "train", num_questions: int = 6
) -> Diagram:
    """Return a diagram with up to `num_questions` questions about it.

    size: the longest side in pixels, or (height, width). split: whose words and fonts are printed.
    """
    random = Random(int(rng.integers(2**63)))
    for _ in range(MAX_TRIES):
        height, width = draw_shape(random, size) if isinstance(size, int) else size
        canvas = Canvas(width, height, random.choice(PAPERS))
        names = _names(random, split, random.randint(3, 8 if max(height, width) > 300 else 6))
        try:
            drawing = random.choice(_KINDS)(random, canvas, _print(random, split), names)
        except DoesNotFit:
            continue
        image = canvas.finish()
        return Diagram(
            image=age(image, random) if random.random() < 0.2 else image,
            characters=tuple(canvas.characters),
            parts=tuple(drawing.parts),
            arrows=tuple(drawing.arrows),
            questions=tuple(ask_about(random, drawing, split, num_questions)),
        )
    raise ValueError(f"no diagram fits in {size} pixels after {MAX_TRIES} tries; expected at least 192")


def _names(random: Random, split: Split, number: int) -> list[str]:
    """Return different names, of one list or invented."""
    kind, share_invented = random.choice(LISTS), random.choice((0.0, 0.3, 1.0))
    names: dict[str, None] = {}
    while len(names) < number:
        invented = random.random() < share_invented or len(names) >= len(words(kind, split))
        names[pseudo_word(random, split) if invented else random.choice(words(kind, split))] = None
    return list(names)


def _print(random: Random, split: Split) -> Print:
    path = random.choice(find_fonts((), split == "held_out"))
    face = load_face(path, round(2 * random.uniform(9, 15)) / 2, 0.0)
    draw = random.random()
    shows_words, shows_letters = draw >= SHARE_ONLY_LETTERS, draw < 1 - SHARE_ONLY_WORDS
    return Print(face, random.choice(INKS), shows_words, shows_letters)
