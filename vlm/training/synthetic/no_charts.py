"""Pictures that are no charts, and what is asked of them as if they were: all of it is declined."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from vlm.training.synthetic.boxes import Character
from vlm.training.synthetic.canvas import Canvas, Colour, age
from vlm.training.synthetic.charts import draw_chart
from vlm.training.synthetic.diagrams import draw_diagram
from vlm.training.synthetic.questions import Question, ask, decline
from vlm.training.synthetic.style import COLOURS
from vlm.training.synthetic.text_pages import draw_page
from vlm.training.synthetic.words import Split

ASKED_CHART = 224
"""Longest side, in pixels, of the chart that the questions are borrowed from."""
PAPERS: tuple[Colour, ...] = ((255, 255, 255), (255, 255, 255), (245, 240, 230), (20, 20, 20))
SCENES = (
    ((110, 160, 215), (60, 110, 60)),
    ((200, 215, 235), (150, 130, 100)),
    ((240, 170, 120), (60, 50, 70)),
    ((120, 120, 125), (60, 55, 50)),
    ((215, 190, 165), (140, 90, 70)),
)
"""Colours of the upper and the lower half of what looks like a photograph."""


class NoChart(NamedTuple):
    """A picture, the characters printed on it, and what it is in a sentence."""

    image: Image.Image
    characters: list[Character]
    caption: str


def draw_no_chart(rng: np.random.Generator, size: int | tuple[int, int], *, split: Split = "train") -> NoChart:
    """Return a page of print, a diagram, an empty sheet, shapes, noise, a gradient, or what looks like a photograph.

    size: the side of a square in pixels, or (height, width). split: whose words and fonts are printed.
    """
    shape = (size, size) if isinstance(size, int) else size
    kind = rng.choice(tuple(_KINDS), p=tuple(_KINDS.values()))
    if kind == "page":
        return NoChart(*draw_page(rng, shape, split=split), "A page of print.")
    if kind == "diagram":
        diagram = draw_diagram(rng, shape, split=split, num_questions=0)
        return NoChart(diagram.image, list(diagram.characters), "A diagram.")
    image, caption = _DRAW[kind](rng, *shape)
    return NoChart(image, [], caption)


_KINDS = {
    "page": 0.2,
    "diagram": 0.15,
    "empty": 0.1,
    "shapes": 0.15,
    "noise": 0.05,
    "gradient": 0.1,
    "photograph": 0.25,
}


def ask_in_vain(
    rng: np.random.Generator, picture: NoChart, num_questions: int, *, split: Split = "train"
) -> list[Question]:
    """Return questions about some chart, all declined but those for what the picture is."""
    chart = draw_chart(rng, ASKED_CHART, split=split, several_series=rng.random() < 0.3, blank=True)
    questions = []
    for asked in ask(rng, chart, num_questions, wide=True, share_declined=0.1):
        if "describe this image" in asked.question.lower():
            described = Question(
                question=asked.question, answer=picture.caption, kind="no_chart", find_boxes=(), copy_boxes=()
            )
            questions.append(described)
        else:
            questions.append(decline(asked.question))
    return questions


def _empty(rng: np.random.Generator, height: int, width: int) -> tuple[Image.Image, str]:
    random = _random(rng)
    image = Image.new("RGB", (width, height), random.choice(PAPERS))
    return age(image, random) if random.random() < 0.3 else image, "An empty sheet."


def _shapes(rng: np.random.Generator, height: int, width: int) -> tuple[Image.Image, str]:
    """Draw discs, boxes and lines here and there, in the colours of charts."""
    random = _random(rng)
    canvas = Canvas(width, height, random.choice(PAPERS))
    shades = [shade for shades in COLOURS["train"].values() for shade in shades]
    for _ in range(random.randint(1, 14)):
        x, y = random.uniform(0, width), random.uniform(0, height)
        across, down = random.uniform(4, width / 2), random.uniform(4, height / 2)
        fill = random.choice(shades)
        if random.random() < 0.25:
            ends = ((x, y), (random.uniform(0, width), random.uniform(0, height)))
            canvas.shape("line", ends, fill=fill, width=random.randint(1, 5))
        else:
            canvas.shape(random.choice(("ellipse", "rectangle")), (x, y, x + across, y + down), fill=fill)
    image = canvas.finish()
    return age(image, random) if random.random() < 0.3 else image, "Coloured shapes."


def _noise(rng: np.random.Generator, height: int, width: int) -> tuple[Image.Image, str]:
    parts = 3 if rng.random() < 0.5 else 1
    grain = int(rng.integers(1, 5))
    pixels = rng.integers(0, 256, (height // grain + 1, width // grain + 1, parts), dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())
    return image.resize((width, height), Image.Resampling.NEAREST), "Noise."


def _gradient(rng: np.random.Generator, height: int, width: int) -> tuple[Image.Image, str]:
    """Draw a smooth passage between two to nine colours."""
    corners = rng.integers(0, 256, (int(rng.integers(1, 4)), int(rng.integers(2, 4)), 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC), "A colour gradient."


def _photograph(rng: np.random.Generator, height: int, width: int) -> tuple[Image.Image, str]:
    """Draw what looks like a photograph: land under a sky, blurred things on it, clouds of detail over all."""
    random = _random(rng)
    upper, lower = random.choice(SCENES)
    horizon = random.uniform(0.2, 0.8)
    rows = np.linspace(0, 1, height)[:, None, None]
    below = 1 / (1 + np.exp((horizon - rows) * random.uniform(8, 120)))
    ground = (1 - below) * np.array(upper) + below * np.array(lower)
    image = Image.fromarray(np.broadcast_to(ground, (height, width, 3)).clip(0, 255).astype(np.uint8))
    things = Canvas(width, height, (0, 0, 0))
    for _ in range(random.randint(2, 9)):
        x, y = random.uniform(0, width), random.gauss(horizon, 0.15) * height
        across, down = random.uniform(0.03, 0.25) * width, random.uniform(0.03, 0.3) * height
        fill = tuple(min(max(part + random.randint(-60, 60), 0), 255) for part in random.choice((upper, lower)))
        method = random.choice(("ellipse", "rectangle"))
        things.shape(method, (x - across, y - down, x + across, y + down), fill=fill)
    drawn = things.finish()
    image.paste(drawn, mask=drawn.convert("L").point(lambda level: 255 if level else 0))
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 4)))
    detail = np.asarray(image, dtype=np.float32) + _clouds(rng, height, width)[..., None] * random.uniform(15, 60)
    return age(Image.fromarray(detail.clip(0, 255).astype(np.uint8)), random), "A photograph."


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return noise of all sizes, the coarser the stronger, about within [-1, 1], float32 [height, width]."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(2, 8):
        coarse = rng.normal(0, 1, (2**octave, 2**octave)).astype(np.float32)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
        total += np.asarray(fine) * 0.5 ** (octave - 1)
    return total


def _random(rng: np.random.Generator) -> Random:
    return Random(int(rng.integers(2**63)))


_DRAW: dict[str, Callable[[np.random.Generator, int, int], tuple[Image.Image, str]]] = {
    "empty": _empty,
    "shapes": _shapes,
    "noise": _noise,
    "gradient": _gradient,
    "photograph": _photograph,
}
