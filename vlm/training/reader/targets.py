"""What the patches of a chart hold, and where a reader of it should look while it answers.

All of it follows from where the drawing code put each character. Patches are counted along the rows of the whole
canvas of `grid` (rows, cols) patches.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vlm.tokenizer import Tokenizer
from vlm.training.synthetic.boxes import Box, characters_in
from vlm.training.synthetic.charts import Chart, patch_at, patch_mask
from vlm.training.synthetic.diagrams import Diagram
from vlm.training.synthetic.questions.question import MANY_TEXTS, Question

# What the first printable character is coded as is 1; 0 stands for "no character here".
FIRST_CODE = ord(" ")
NUM_CODES = 96

IGNORED = -100
"""The class of what is not known, and of tokens that are not to be predicted."""
FIND, COPY, SPELL = slice(0, 2), slice(2, 4), slice(4, 5)
"""Pointers: two places to find (what the question names), two to take the answer from, and the patch of the very
character that comes next."""
NUM_POINTERS = 5
MAX_ORDER = 31
"""Characters further on in a text than this are told as this."""
NUM_FIRST = 4
"""Characters by which a text is known."""
NO_SHADE, UNSHADED = -1, -2
MAX_MAGNITUDE = 1001
"""What the largest value of a chart is told as, the smallest being 1."""


class PatchLinks(NamedTuple):
    """What each patch belongs to; 0 where there is none. Each int16 [p], but for the last two.

    A label beside its value and one below it are told apart, for no one head can seek along rows and columns.
    """

    label: np.ndarray
    """The label printed in this patch."""
    entry: np.ndarray
    """The legend entry printed in this patch."""
    label_beside: np.ndarray
    """The label of the value printed in this patch, where both stand in a row."""
    label_below: np.ndarray
    """The same, where one stands below the other."""
    value_entry: np.ndarray
    """The legend entry of the value printed in this patch."""
    order: np.ndarray
    """Which character of its label, value, entry or title is the first in this patch, from 1."""
    beginning: np.ndarray
    """The classes of the first characters of that label, value, entry or title, [p, NUM_FIRST]."""
    magnitude: np.ndarray
    """Where the value printed in this patch lies between the smallest (1) and the largest (`MAX_MAGNITUDE`) of the
    chart, or that of a label of a single series; 0 where there is none."""
    shade: np.ndarray
    """(red, green, blue) of what a value, the start of a legend entry, or a label of a single series stands for,
    [p, 3]; NO_SHADE where none of these is printed, UNSHADED at a label of several series."""


class Pointers(NamedTuple):
    """Where the pointers should look at each position of a conversation."""

    numbers: np.ndarray
    """[NUM_POINTERS, s] int64: which of `places`; 0 where there is nothing to point at."""
    places: np.ndarray
    """[n, p] bool: sets of patches, the first of them empty."""


def patch_links(chart: Chart, patch_size: float, grid: tuple[int, int]) -> PatchLinks:
    """Return the links of a chart that lies at the top left of its canvas."""
    links = no_links(grid)
    labels = {label: index for index, label in enumerate(chart.spec.labels, 1)}
    entries = {name: index for index, name in enumerate(chart.spec.series_names, 1)}
    boxes = {chart.title_box} if chart.title_box else set()
    magnitudes = _magnitudes(chart)
    for mark, magnitude in zip(chart.marks, magnitudes, strict=True):
        label, entry = labels[mark.label], entries[mark.series]
        of_label = _mask(chart, mark.label_box, patch_size, grid)
        links.label[of_label] = label
        links.shade[of_label] = mark.shade if mark.series_box is None else UNSHADED
        value = _mask(chart, mark.value_box, patch_size, grid)
        beside = _gap(mark.label_box, mark.value_box, axis=1) < _gap(mark.label_box, mark.value_box, axis=0)
        (links.label_beside if beside else links.label_below)[value] = label
        if mark.series_box is not None:
            links.entry[_mask(chart, mark.series_box, patch_size, grid)] = entry
            links.value_entry[value] = entry
            links.shade[_start(chart, mark.series_box, patch_size, grid)] = mark.shade
        else:
            links.magnitude[of_label] = magnitude
        links.shade[value] = mark.shade
        links.magnitude[value] = magnitude
        boxes |= {box for box in (mark.label_box, mark.value_box, mark.series_box) if box}
    for box in boxes:
        text, places = printed_text(chart, box)
        first = character_codes(np.frombuffer(text[:NUM_FIRST].encode().ljust(NUM_FIRST, b"\0"), dtype=np.uint8))
        # Backwards, so that the first character in a patch is what stays.
        for index, (y, x) in reversed(list(enumerate(places, 1))):
            patch = _patch(y, x, patch_size, grid)
            links.order[patch] = min(index, MAX_ORDER)
            links.beginning[patch] = first
    return links


def _magnitudes(chart: Chart) -> list[int]:
    """Return the magnitude of each mark; zeros where not all have one, or all have the same value."""
    numbers = [mark.number for mark in chart.marks]
    if not chart.complete or not numbers or min(numbers) == max(numbers):
        return [0] * len(numbers)
    lowest, highest = min(numbers), max(numbers)
    # Only the very ends are told as such.
    between = [round(1 + (MAX_MAGNITUDE - 1) * (number - lowest) / (highest - lowest)) for number in numbers]
    return [
        1 if number == lowest else MAX_MAGNITUDE if number == highest else min(max(place, 2), MAX_MAGNITUDE - 1)
        for number, place in zip(numbers, between, strict=True)
    ]


def no_links(grid: tuple[int, int]) -> PatchLinks:
    """Return the links of a picture that has none."""
    num_patches, num_others = grid[0] * grid[1], len(PatchLinks._fields) - 3
    return PatchLinks(
        *np.zeros((num_others, num_patches), dtype=np.int16),
        beginning=np.zeros((num_patches, NUM_FIRST), dtype=np.int16),
        magnitude=np.zeros(num_patches, dtype=np.int16),
        shade=np.full((num_patches, 3), NO_SHADE, dtype=np.int16),
    )


def _gap(one: Box, other: Box, axis: int) -> float:
    """Return how far two boxes lie apart along the x axis (0) or the y axis (1); 0 where they overlap."""
    return max(0.0, one[axis] - other[axis + 2], other[axis] - one[axis + 2])


@lru_cache(maxsize=256)  # a box of the chart at hand is asked for again and again
def _mask(chart: Chart | Diagram, box: Box, patch_size: float, grid: tuple[int, int]) -> np.ndarray:
    return patch_mask(chart.characters, (box,), patch_size, grid)


def _start(chart: Chart | Diagram, box: Box, patch_size: float, grid: tuple[int, int]) -> np.ndarray:
    """Return the patches of the first characters of what is printed in a box: a legend's swatch is beside them."""
    mask = np.zeros(grid[0] * grid[1], dtype=bool)
    for y, x in printed_text(chart, box)[1][:NUM_FIRST]:
        mask[_patch(y, x, patch_size, grid)] = True
    return mask


def _patch(y: float, x: float, patch_size: float, grid: tuple[int, int]) -> int:
    """Return the number of the patch that a place lies in."""
    return patch_at(y, patch_size, grid[0]) * grid[1] + patch_at(x, patch_size, grid[1])


def pointer_targets(
    tokenizer: Tokenizer,
    chart: Chart | Diagram,
    question: Question,
    prompt: list[int],
    reply: list[int],
    patch_size: float,
    grid: tuple[int, int],
) -> Pointers:
    """Return where the pointers should look at each position of `prompt + reply[:-1]`.

    A position points for the token that it predicts; besides, the tokens of each label or value that the question
    names look for it. Where two are compared, the answer points at them in the order in which it is Yes if the first
    is more: whether more or less is asked for says nothing of the answer without the values, nor they without it, and
    so neither was learned. A question that is declined points nowhere: what it names is not there, and a head that
    finds nothing need not be told where to look.
    """
    numbers = np.zeros((NUM_POINTERS, len(prompt) + len(reply) - 1), dtype=np.int64)
    places = [np.zeros(grid[0] * grid[1], dtype=bool)]
    first = len(prompt) - 1
    entries = {mark.series_box for mark in chart.marks}
    found = [(_start if box in entries else _mask)(chart, box, patch_size, grid) for box in question.find_boxes]
    copied = [_mask(chart, box, patch_size, grid) for box in question.copy_boxes]

    def number(place: np.ndarray) -> int:
        places.append(place)
        return len(places) - 1

    if question.kind not in MANY_TEXTS:
        for masks, pointer in ((found, FIND), (copied, COPY)):
            if not masks:
                continue
            parts = masks if len(masks) == 2 else [np.logical_or.reduce(masks)]
            # What is found alone, both heads find: the second tells its shade.
            parts = parts * 2 if len(parts) == 1 and pointer == FIND else parts
            for row, place in zip(numbers[pointer], parts[::-1] if question.turned else parts, strict=False):
                row[first:] = number(place)
        asked = token_of_each_character(tokenizer, prompt)
        for index, box in enumerate(question.find_boxes if len(found) <= 2 else ()):
            span = _span(asked[0], printed_text(chart, box)[0], 0)
            if span:
                # From its second character on, for which label it is shows only by and by.
                rows = slice(FIND.start, FIND.stop) if len(found) == 1 else FIND.start + index
                numbers[rows, asked[1][min(span[0] + 1, span[1] - 1) : span[1]]] = number(found[index])
    text, tokens = token_of_each_character(tokenizer, reply[:-1])
    cursor = 0
    for box, mask in () if question.worked_out else zip(question.copy_boxes, copied, strict=True):
        printed, spots = printed_text(chart, box)
        for spelt, kept in _spellings(printed):
            span = _span(text, spelt, cursor)
            if span is None:
                continue
            positions = [first + tokens[span[0] + offset] for offset in range(len(kept))]
            for position in dict.fromkeys(positions):
                numbers[SPELL.start, position] = number(np.zeros_like(mask))
            for position, spot in zip(positions, kept, strict=True):
                places[numbers[SPELL.start, position]][_patch(*spots[spot], patch_size, grid)] = True
            if question.kind in MANY_TEXTS:
                numbers[COPY.start, positions] = number(mask)
            cursor = span[1]
            break
    return Pointers(numbers, np.stack(places))


@lru_cache(maxsize=256)
def printed_text(chart: Chart | Diagram, box: Box) -> tuple[str, list[tuple[float, float]]]:
    """Return what is printed in a box, without spaces, and the (y, x) of each of its characters."""
    inside = characters_in(chart.characters, box)
    return "".join(char for char, _, _ in inside), [(y, x) for _, x, y in inside]


def _spellings(printed: str):
    """Yield what an answer may make of print, as it stands or as a bare number, and which characters it keeps."""
    yield printed, list(range(len(printed)))
    kept = [index for index, char in enumerate(printed) if char.isdigit() or char in ".-"]
    yield "".join(printed[index] for index in kept), kept


def _span(text: str, part: str, start: int) -> tuple[int, int] | None:
    place = text.find(part, start) if part else -1
    return None if place < 0 else (place, place + len(part))


def token_of_each_character(tokenizer: Tokenizer, ids: list[int]) -> tuple[str, list[int]]:
    """Return the text of ids without spaces and special tokens, and of each character the index of its token."""
    text, tokens = "", []
    for index, token_id in enumerate(ids):
        part = _characters(tokenizer, token_id)
        text += part
        tokens += [index] * len(part)
    return text, tokens


@lru_cache(maxsize=4096)
def _characters(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the text of a token without spaces; none of a special one."""
    if tokenizer.is_special(token_id):
        return ""
    # Charts are drawn in ASCII, where a byte is a character.
    return tokenizer.decode_single_token_bytes(token_id).decode("latin-1").replace(" ", "")


def character_codes(codes: np.ndarray) -> np.ndarray:
    """Return byte codes (0 where there is none) as classes from 0 to NUM_CODES - 1."""
    return np.where(codes > 0, codes.astype(np.int64) - FIRST_CODE + 1, 0).clip(0, NUM_CODES - 1)
