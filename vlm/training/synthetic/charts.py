"""Draw charts from a seed, with where everything printed stands: what the small reader is trained on.

`draw_chart` makes a chart, `ask` (in `questions`) makes questions with their evidence, `patch_characters` and
`patch_mask` turn characters and boxes into targets for the patches of a tile. The same seed gives the same chart as
long as the same fonts are installed; with Pillow alone it is Pillow's own.
"""

from collections.abc import Sequence
from random import Random

import numpy as np

from vlm.training.synthetic.boxes import Box, Character, characters_in
from vlm.training.synthetic.canvas import DoesNotFit
from vlm.training.synthetic.kinds import KINDS, choose_kind, dress
from vlm.training.synthetic.questions import Question, ask, ask_how_many
from vlm.training.synthetic.renderer import Chart, Mark, render
from vlm.training.synthetic.spec import draw_spec
from vlm.training.synthetic.strange_words import with_strange_words
from vlm.training.synthetic.style import draw_shape, draw_style
from vlm.training.synthetic.words import Split

__all__ = [
    "Character",
    "Chart",
    "Mark",
    "Question",
    "ask",
    "ask_how_many",
    "draw_chart",
    "patch_characters",
    "patch_mask",
]

MAX_TRIES = 1000
TRIES_A_KIND = 25
"""Of the wider variety, before another kind is drawn."""


def draw_chart(
    rng: np.random.Generator,
    size: int | tuple[int, int] = 256,
    *,
    difficulty: float = 1.0,
    split: Split = "train",
    several_series: bool = False,
    wide: bool = False,
    strangeness: float = 0.0,
    font_folders: Sequence[str] = (),
    blank: bool = False,
) -> Chart:
    """Draw a random chart whose longest side is `size` pixels, or one of `size` (height, width).

    difficulty: in [0, 1]; 0 gives bars with few labels, large print and nothing else, 1 the whole variety.
    split: "held_out" charts share no word, no numeral of two or more digits and no bar colour with "train" ones, and no
        font where the machine has other fonts than Pillow's own.
    several_series: draw two or more series of values; otherwise most charts have one.
    wide: draw from the wider variety of `kinds`, which is for training: held-out charts are measured with and stay as
        they are.
    strangeness: in [0, 1]; of the words of a "train" chart, how many are changed to ones in no list.
    font_folders: searched for further TTF and OTF fonts, all of which must hold the ASCII characters.
    blank: leave the picture empty, for who asks about the chart and does not show it.
    """
    random = Random(int(rng.integers(2**63)))
    kind = ""
    for attempt in range(MAX_TRIES):
        if wide and attempt % TRIES_A_KIND == 0:
            kind = choose_kind(random, several_series=several_series)
        shape = draw_shape(random, size) if isinstance(size, int) else size
        try:
            spec = (KINDS[kind].contents if kind else draw_spec)(random, split, difficulty, shape)
            if several_series and len(spec.series_names) == 1:
                continue
            if strangeness:
                spec = with_strange_words(random, spec, strangeness)
            style = draw_style(random, spec, split, shape, difficulty, tuple(font_folders))
            if kind:
                spec, style = dress(random, kind, spec, style)
            return render(spec, style, random, blank=blank)
        except DoesNotFit:
            continue
    raise ValueError(f"no chart fits in {size} pixels after {MAX_TRIES} tries; expected at least 192")


def patch_characters(
    characters: Sequence[Character], patch_size: float, grid: tuple[int, int], max_per_patch: int = 3
) -> np.ndarray:
    """Return for each patch the codes of the characters whose centres lie in it, uint8 [rows, cols, max_per_patch].

    The picture lies at the top left of a tile of `grid` (rows, cols) patches. Codes are bytes (0 where there is no
    character). Within a patch upper lines come first and each runs left to right; what is too many is dropped.
    """
    codes = np.zeros((*grid, max_per_patch), dtype=np.uint8)
    patches: dict[tuple[int, int], list[Character]] = {}
    centres = np.array([(character.y, character.x) for character in characters]).reshape(-1, 2)
    places = (centres // patch_size).clip(0, np.array(grid) - 1).astype(int)  # `patch_at` of all of them
    for place, character in zip(map(tuple, places.tolist()), characters, strict=True):
        patches.setdefault(place, []).append(character)
    for (row, col), inside in patches.items():
        for i, character in enumerate(_in_reading_order(inside)[:max_per_patch]):
            codes[row, col, i] = ord(character.char)
    return codes


def _in_reading_order(characters: list[Character]) -> list[Character]:
    """Sort by line, then left to right; characters less than five pixels apart in height are of one line."""
    if len(characters) == 1:
        return characters
    lines: list[list[Character]] = []
    for character in sorted(characters, key=lambda character: character.y):
        if lines and character.y - lines[-1][0].y < 5:
            lines[-1].append(character)
        else:
            lines.append([character])
    return [character for line in lines for character in sorted(line, key=lambda character: character.x)]


def patch_mask(
    characters: Sequence[Character], boxes: Sequence[Box], patch_size: float, grid: tuple[int, int]
) -> np.ndarray:
    """Return which patches hold the evidence in `boxes`, bool [rows * cols].

    A box with print in it marks the patches that hold the centres of its characters; a box without marks every patch
    that it overlaps by three pixels or more both ways, and always the patch of its centre.
    """
    mask = np.zeros(grid, dtype=bool)
    for box in boxes:
        x0, y0, x1, y1 = box
        inside = [(y, x) for _, x, y in characters_in(characters, box)]
        for y, x in inside or [((y0 + y1) / 2, (x0 + x1) / 2)]:
            mask[patch_at(y, patch_size, grid[0]), patch_at(x, patch_size, grid[1])] = True
        if not inside:
            rows = slice(patch_at(y0 + 3, patch_size, grid[0]), patch_at(y1 - 3, patch_size, grid[0]) + 1)
            cols = slice(patch_at(x0 + 3, patch_size, grid[1]), patch_at(x1 - 3, patch_size, grid[1]) + 1)
            mask[rows, cols] = True
    return mask.reshape(-1)


def patch_at(position: float, patch_size: float, num_patches: int) -> int:
    """Return which patch a position lies in; one beyond the rim, where a picture is shrunk unevenly, in the last."""
    return min(max(int(position // patch_size), 0), num_patches - 1)
