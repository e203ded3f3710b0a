"""Random looks of a chart: kind, size, fonts, colours, and which of axes, grid and values are printed."""

import functools
import math
from dataclasses import dataclass
from random import Random

from PIL import Image

from vlm.training.synthetic.canvas import Colour
from vlm.training.synthetic.fonts import Face, find_fonts, load_face
from vlm.training.synthetic.spec import LARGE, ChartSpec
from vlm.training.synthetic.words import Split

COLOURS = {
    "train": {
        "blue": ((40, 118, 221), (31, 119, 180), (68, 114, 196), (22, 65, 129), (97, 149, 214)),
        "black": ((15, 40, 62), (40, 40, 40)),
        "grey": ((186, 186, 186), (140, 140, 140)),
        "red": ((166, 9, 9), (214, 39, 40), (191, 60, 38)),
        "orange": ((255, 127, 14), (237, 125, 49)),
        "green": ((44, 160, 44), (112, 173, 71), (110, 140, 60)),
        "purple": ((148, 103, 189), (112, 48, 160)),
        "yellow": ((255, 192, 0), (226, 190, 60)),
        "brown": ((140, 86, 75), (158, 121, 41)),
    },
    "held_out": {
        "blue": ((66, 133, 244), (70, 130, 180)),
        "red": ((219, 68, 55), (205, 92, 92)),
        "green": ((15, 157, 88), (60, 179, 113)),
        "orange": ((255, 140, 60),),
        "purple": ((120, 94, 240),),
        "pink": ((227, 119, 194), (220, 38, 127)),
        "grey": ((119, 136, 153),),
    },
}
LOOKS = ("statistics", "survey", "spreadsheet", "plain")
ASPECTS = ((4, 3), (4, 3), (1, 1), (16, 9), (3, 2), (7, 5), (5, 4), (4, 5), (3, 4))
INK = (0, 0, 0)
VARIED = 10
"""How far the parts of a colour may be from those of ours in charts to learn from."""
LARGE_PRINT = (12.5, 20.0)
"""In pixels, as plotting libraries print by default."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """The look of one chart. Sizes are in pixels of the finished picture, faces in those of the drawing.

    shape: (height, width) of the picture.
    scale: how much larger than the picture the drawing is; it is shrunk with `resample`, which softens the print.
    layout: how the contents are laid out, where not as the kind's name says.
    legend: where the names of several series stand: in "rows" above or below the plot, in a column at the "right", at
        the "ends" of the lines, or as "heads" of columns.
    label_angle: degrees by which the labels below the plot are turned.
    thinned_labels: of labels below the plot, which are printed: each so many-th, the first and the last; 0 for all.
    values_at_ends: values stand only at the first and the last point of each line.
    edge_to_edge: points lie from edge to edge of the plot, years as on a scale, rather than in slots.
    cut_axis: the value axis need not hold zero.
    page: how much of a page is seen (left, above, right, below) of the chart; with `browser`, its bar on top of that.
    softened: how far the finished picture is shrunk and enlarged again.
    """

    kind: str
    look: str
    shape: tuple[int, int]
    scale: float
    resample: Image.Resampling
    aged: bool
    margin: float
    background: Colour
    ink: Colour
    label_ink: Colour
    value_ink: Colour
    faint_ink: Colour
    colours: tuple[Colour, ...]
    colours_by_label: bool
    outline: Colour | None
    grid_colour: Colour | None
    axis_colour: Colour
    axis_width: int
    framed: bool
    title_face: Face
    label_face: Face
    value_face: Face
    small_face: Face
    head_face: Face
    title_align: float
    source_align: float
    line_pitch: float
    legend_below: bool
    round_swatches: bool
    stacked: bool
    banded: bool
    toolbar: bool
    labels_left: bool
    upward_subtitle: bool
    ticks_printed: bool
    bare_ticks: bool
    values_printed: bool
    values_inside: bool
    headroom: float
    bar_share: float
    max_slot: float
    line_width: int
    point_radius: float
    first_angle: float
    ring: bool
    layout: str = ""
    legend: str = "rows"
    end_tags: bool = False
    names_coloured: bool = False
    label_angle: int = 0
    thinned_labels: int = 0
    values_at_ends: bool = False
    edge_to_edge: bool = False
    cut_axis: bool = False
    log_axis: bool = False
    long_subtitle: bool = False
    plot_fill: Colour | None = None
    ruled: bool = False
    page: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    browser: bool = False
    softened: float = 1.0


@functools.lru_cache(maxsize=1024)  # of each mark of a chart, which share theirs
def colour_name(colour: Colour) -> str:
    """Return the plain name of one of our colours, or of the one that is most like it."""
    shades = ((shade, name) for table in COLOURS.values() for name, shades in table.items() for shade in shades)
    return min(shades, key=lambda each: math.dist(each[0], colour))[1]


def draw_style(
    random: Random,
    spec: ChartSpec,
    split: Split,
    shape: tuple[int, int],
    difficulty: float,
    font_folders: tuple[str, ...],
) -> Style:
    """Draw a look that suits the contents; `difficulty` in [0, 1] brings ticks, grids, small or soft print."""
    kind = _kind(random, spec, difficulty)
    large = max(shape) >= LARGE
    # Pictures of 800 pixels, which most statistics come in, are shrunk by 1.4 onto two by two tiles of 288.
    look = random.choices(LOOKS, weights=(3, 1, 1, 1) if large else (1, 1, 1, 1))[0]
    scale = random.choice((1.5, 2.0)) if random.random() < 0.3 * difficulty else 1.0
    if large and random.random() < 0.6:
        scale = 800 / 576
    dark = random.random() < 0.05 * difficulty
    plain = random.random() > difficulty
    values_printed = kind == "pie" or random.random() > 0.07 * difficulty
    ticks = not values_printed or (not plain and random.random() < (0.15 if look == "survey" else 0.7))
    ink = (235, 235, 235) if dark else random.choice((INK, INK, (38, 38, 38), (60, 60, 60), (20, 30, 70)))
    soft = (180, 180, 180) if dark else random.choice((ink, (70, 70, 70), (100, 100, 100)))
    shades = _colours(random, split, max(len(spec.labels), len(spec.series_names)))
    return Style(
        kind=kind,
        look=look,
        shape=shape,
        scale=scale,
        resample=random.choice((Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX)),
        aged=random.random() < 0.2 * difficulty,
        margin=random.uniform(3, 9),
        background=_background(random, dark, difficulty),
        ink=ink,
        label_ink=random.choice((ink, soft)),
        value_ink=random.choice((ink, ink, soft)),
        faint_ink=soft,
        colours=shades,
        colours_by_label=random.random() < 0.2,
        outline=ink if look == "spreadsheet" and random.random() < 0.2 else None,
        grid_colour=random.choice(((225, 225, 225), (205, 205, 205))) if ticks and not dark else None,
        axis_colour=random.choice((ink, (120, 120, 120), (190, 190, 190))),
        axis_width=random.choice((1, 1, round(scale))) if look != "survey" else random.choice((0, 1)),
        framed=look == "spreadsheet" and random.random() < 0.5,
        **_faces(random, look, split, scale, difficulty, font_folders),
        round_swatches=random.random() < 0.5,
        stacked=len(spec.series_names) > 1 and kind != "line" and random.random() < 0.4,
        # Pale print on pale bands cannot be read; the held-out charts are measured with and stay as they are.
        banded=look == "statistics" and large and random.random() < 0.7 and not (dark and split == "train"),
        toolbar=look == "statistics" and large and random.random() < 0.7,
        title_align=0.0 if look == "survey" else random.choice((0.0, 0.5, 0.5)),
        source_align=random.choice((0.0, 1.0)),
        line_pitch=random.choice((0, 0, 16)),
        legend_below=random.random() < 0.5,
        labels_left=random.random() < 0.15,
        upward_subtitle=kind in ("bar", "line") and look != "survey" and random.random() < 0.4,
        ticks_printed=ticks and kind != "pie",
        bare_ticks=random.random() < 0.5,
        values_printed=values_printed,
        values_inside=random.random() < 0.15,
        headroom=random.uniform(1.0, 1.2),
        bar_share=random.uniform(0.5, 0.92),
        max_slot=random.uniform(22, 60) * (1.6 if large else 1),
        line_width=round(random.choice((1, 2, 2, 3)) * scale),
        point_radius=random.choice((1.5, 2, 2.5, 3)),
        first_angle=random.choice((-90, -90, 0, random.uniform(0, 360))),
        ring=random.random() < 0.3,
    )


def _kind(random: Random, spec: ChartSpec, difficulty: float) -> str:
    if random.random() > difficulty:
        return random.choice(("bar", "horizontal bar"))
    if spec.label_kind in ("year", "month"):
        return random.choices(("bar", "horizontal bar", "line"), weights=(10, 2, 8))[0]
    pie = 4 if len(spec.series_names) == 1 else 0
    return random.choices(("bar", "horizontal bar", "line", "pie"), weights=(9, 4, 1.2, pie))[0]


def draw_shape(random: Random, longest: int) -> tuple[int, int]:
    """Return (height, width) of one of the usual shapes, a little varied, the longest side being `longest`."""
    across, down = random.choice(ASPECTS)
    ratio = across / down * random.uniform(0.94, 1.06)
    if ratio >= 1:
        return min(round(longest / ratio), longest), longest
    return longest, min(round(longest * ratio), longest)


def _background(random: Random, dark: bool, difficulty: float) -> Colour:
    if dark:
        return random.choice(((20, 20, 20), (30, 34, 50)))
    if random.random() < 1 - 0.3 * difficulty:
        return (255, 255, 255)
    return random.choice(((250, 250, 250), (244, 244, 240), (255, 250, 235), (235, 242, 250)))


def _colours(random: Random, split: Split, num_colours: int) -> tuple[Colour, ...]:
    """Return shades of different names, then repeats of them when there are not enough."""
    names = list(COLOURS[split])
    random.shuffle(names)
    if random.random() < 0.4 and "blue" in names:
        names.insert(0, names.pop(names.index("blue")))
    num_colours = max(num_colours, 3)
    # The held-out charts are measured with and stay as they are.
    times = 2 if split == "held_out" else math.ceil(num_colours / len(names))
    names = (names * times)[:num_colours]
    shades = tuple(random.choice(COLOURS[split][name]) for name in names)
    if split == "held_out":
        return shades
    return tuple(tuple(min(max(part + random.randint(-VARIED, VARIED), 0), 255) for part in shade) for shade in shades)


def _faces(
    random: Random, look: str, split: Split, scale: float, difficulty: float, font_folders: tuple[str, ...]
) -> dict[str, Face]:
    """Choose one font, or one for the title and one for the rest, and the sizes of print."""
    fonts = find_fonts(font_folders, split == "held_out")
    # The held-out charts are measured with and stay as they are.
    share_others = 0.6 if split == "held_out" else 0.97
    body = random.choice(fonts) if random.random() < share_others else fonts[0]
    heading = body if random.random() < 0.7 else random.choice(fonts)
    size = random.uniform(10.5 - 2.0 * difficulty, 12.5)
    large = split == "train" and random.random() < 0.3 * difficulty
    size = random.uniform(*LARGE_PRINT) if large else size
    bold = 0.35 if look in ("survey", "statistics") else random.choice((0.0, 0.0, 0.35))
    sizes = {
        "title_face": (heading, min(size * random.uniform(1.0, 1.25), 24.0 if large else 14.5), bold),
        "label_face": (body, size, 0.0),
        "value_face": (body, size * random.choice((1.0, 1.0, 0.94)), random.choice((0.0, 0.0, 0.25))),
        "small_face": (body, max(size * random.uniform(0.82, 1.0), 8.0), 0.0),
        "head_face": (heading, size, bold),
    }
    return {
        name: load_face(path, round(2 * pixels * scale) / 2, strength * scale if path == "" else 0.0)
        for name, (path, pixels, strength) in sizes.items()
    }
