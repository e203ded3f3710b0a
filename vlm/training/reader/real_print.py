"""Real charts with the text that OCR found on them, from a folder in OpenCQA's layout: print to be read in its place.

What OCR says is not all true, and it misses much. So a patch teaches only where its ink is explained: by lines whose
ink is as wide as their text would be, or by there being none.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from vision_encoder.image_input import read_image
from vision_encoder.image_limits import ImageError
from vision_encoder.preprocess import ImageProcessor
from vlm.errors import VLMError, shown
from vlm.training.reader.real_pictures import CANVAS, read_rows, varied
from vlm.training.reader.targets import IGNORED, character_codes
from vlm.training.synthetic.boxes import Box, Character
from vlm.training.synthetic.charts import patch_characters
from vlm.training.synthetic.fonts import load_face

MAX_ENLARGE = 1.6
"""How much larger than it is a picture may be shown, as a dense display does."""
MIN_CONTRAST = 40
"""Levels by which ink differs from what it is printed on."""
FLAT = 12
"""Levels by which the pixels of one colour may differ, for most pictures were compressed."""
MARGIN = 1
"""Pixels that ink may stand out of its box."""
MAX_OUTSIDE = 2
"""Pixels that a sure box may stand out of the picture."""
MIN_SIDE = 5
"""Pixels of the smallest box that print can be made out in."""
MAX_OFF, MAX_OFF_PIXELS = 0.2, 1.5
"""By how much the ink of a word may be wider or narrower than its text would be: the larger of the two."""
LEAST_WIDTH, MOST_WIDTH = 0.65, 1.45
"""Of print, in those of as high print in a plain face."""
SHORT = 0.73
"""Height of an x, in capitals."""
SHORT_CHARS, LOW_CHARS, LITTLE_LOW_CHARS = set("acegmnopqrsuvwxyz.,:;-_"), set("gjpqy()[]{}|"), set(",;$/@Q")
FACE_SIZE = 40


class PrintedPicture(NamedTuple):
    """A chart and what is known of its print, all in pixels."""

    image: Image.Image
    """RGB."""
    characters: list[Character]
    sure: list[Box]
    """Where print is known."""
    unsure: list[Box]
    """Where there is some that is not."""


class _Page(NamedTuple):
    """What a chart's file and its boxes say, in pixels of the file."""

    path: Path
    enlarge: tuple[float, float]
    """The least that fills CANVAS, and the most."""
    text: str
    centres: np.ndarray
    """[number of characters, 2] float32, x and y."""
    sure: np.ndarray
    """[n, 4] float32"""
    unsure: np.ndarray
    """[n, 4] float32"""


class RealPrint:
    """The charts of a folder that fill two by two tiles, as they are or a little enlarged, and show some sure print."""

    def __init__(self, folder: Path, processor: ImageProcessor, *, silent: bool = False):
        """Look at every chart once.

        Raises: VLMError with `invalid_request` for boxes that are not as in OpenCQA or a chart that cannot be read, or
        where there are none.
        """
        self.processor = processor
        self.pages: list[_Page] = []
        paths = sorted((folder / "bboxes").glob("*.json"))
        if not paths:
            raise VLMError(
                "invalid_request", f"{folder.name} holds no text boxes; expected bboxes/*.json and png/ as in OpenCQA"
            )
        for path in tqdm(paths, disable=silent or None, unit="picture", desc="real print"):
            name = f"{path.stem}.png"
            try:
                image = read_image(folder / "png" / name)
            except ImageError as error:
                raise VLMError("invalid_request", f"png/{name:.80}: {error}") from None
            lines = read_lines(path, image.size)
            enlarge = _enlargements(image, processor)
            if enlarge and (page := _read_page(folder / "png" / name, image, lines, enlarge)).text:
                self.pages.append(page)
        if not self.pages:
            raise VLMError(
                "invalid_request",
                f"none of {len(paths)} charts in {folder.name} has print whose place is sure and fills {CANVAS[0]} by "
                f"{CANVAS[1]} tiles; give charts larger than {processor.config.tile_size} pixels both ways",
            )

    def choose(self, rng: np.random.Generator) -> PrintedPicture:
        """Return one of the charts, varied."""
        page = self.pages[rng.integers(len(self.pages))]
        least, most = page.enlarge
        enlarge = rng.uniform(least, most) if rng.random() < 0.5 else least
        image, scale, shift = varied(read_image(page.path), rng, self.processor, enlarge)
        centres = (page.centres * scale + shift).tolist()
        sure, unsure = ((boxes * (scale * 2) + shift * 2).tolist() for boxes in (page.sure, page.unsure))
        characters = [Character(char, *centre) for char, centre in zip(page.text, centres, strict=True)]
        return PrintedPicture(image, characters, [tuple(box) for box in sure], [tuple(box) for box in unsure])


def print_targets(picture: PrintedPicture, patch_size: float, grid: tuple[int, int], num_slots: int) -> np.ndarray:
    """Return the classes of the characters in each patch along the rows, int64 [rows * cols, num_slots].

    The picture lies at the top left of `grid` (rows, cols) patches whose side is `patch_size` of its pixels. A patch
    that has anything on it besides sure print is IGNORED.
    """
    codes = patch_characters(picture.characters, patch_size, grid, num_slots)
    classes = character_codes(codes.reshape(-1, num_slots))
    classes[~_is_explained(picture, patch_size, grid).reshape(-1)] = IGNORED
    return classes


def _is_explained(picture: PrintedPicture, patch_size: float, grid: tuple[int, int]) -> np.ndarray:
    """Return which patches are of one colour but for sure print, bool [rows, cols]; those beyond the picture are."""
    levels = np.asarray(picture.image)
    sure = np.zeros(levels.shape[:2], dtype=bool)
    for boxes, is_sure in ((picture.sure, True), (picture.unsure, False)):
        for x0, y0, x1, y1 in np.maximum(np.array(boxes).round(), 0).astype(int).reshape(-1, 4).tolist():
            sure[y0:y1, x0:x1] = is_sure
    rows, cols = (_starts(patch_size, *sides) for sides in zip(grid, sure.shape, strict=True))
    spread = np.zeros(grid, dtype=np.int64)
    for colour in np.moveaxis(levels, -1, 0):
        low = np.minimum.reduceat(np.minimum.reduceat(np.where(sure, 255, colour), rows, 0), cols, 1)
        high = np.maximum.reduceat(np.maximum.reduceat(np.where(sure, 0, colour), rows, 0), cols, 1)
        spread[: len(rows), : len(cols)] = np.maximum(spread[: len(rows), : len(cols)], high - low.astype(np.int64))
    return spread <= FLAT


def _starts(patch_size: float, num_patches: int, side: int) -> np.ndarray:
    """Return the pixels at which those patches begin that are not beyond a picture of so many pixels."""
    starts = np.round(np.arange(num_patches) * patch_size).astype(int)
    return starts[starts < side]


def read_lines(path: Path, size: tuple[int, int]) -> list[tuple[str, Box]]:
    """Return the text and the box of each line that OCR found on a picture of `size` (width, height).

    Raises: VLMError with `invalid_request` where the file is not as in OpenCQA or a box lies outside the picture.
    """
    rows = read_rows(path, _bad, "mend it or take it out")
    return [_checked(row, size, f"row {place} of {path.name!s:.60}") for place, row in enumerate(rows)]


def _checked(row: object, size: tuple[int, int], place: str) -> tuple[str, Box]:
    if not isinstance(row, dict):
        raise _bad(f"{place} is {shown(row)}", "mend it or take it out")
    text, box = row.get("sentence"), row.get("bounding_box")
    if not isinstance(text, str):
        raise _bad(
            f"sentence of {place} is {shown(text) if 'sentence' in row else 'missing'}", "mend it or take it out"
        )
    is_box = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
    # A line may stand out of the picture by a little.
    if not is_box or not (box[0] <= box[2] and box[1] <= box[3]) or not _touches(box, size):
        found = f"is {box!r:.60}" if is_box else f"is {shown(box)}" if "bounding_box" in row else "is missing"
        raise _bad(f"bounding_box of {place} {found} of a picture of {size[0]} by {size[1]}", "mend it or take it out")
    return text.strip(), tuple(box)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 2**31


def _touches(box: list, size: tuple[int, int]) -> bool:
    return box[0] < size[0] and box[1] < size[1] and box[2] >= 0 and box[3] >= 0


def _bad(found: str, advice: str) -> VLMError:
    expected = (
        "expected a list of rows with sentence and bounding_box, as in OpenCQA: a text and x0, y0, x1, y1 in pixels of "
        "the picture"
    )
    return VLMError("invalid_request", f"{found}; {expected}; {advice}")


def _enlargements(image: Image.Image, processor: ImageProcessor) -> tuple[float, float] | None:
    """Return how much a picture has to be enlarged to fill CANVAS, and how much it may be; None if it never does."""
    for enlarge in np.linspace(1, MAX_ENLARGE, 13).tolist():
        size = round(image.height * enlarge), round(image.width * enlarge)
        if processor.placement(size)[0] == CANVAS:
            room = CANVAS[0] * processor.config.tile_size / max(image.size)
            return enlarge, max(enlarge, min(MAX_ENLARGE, room))
    return None


def _read_page(path: Path, image: Image.Image, lines: list[tuple[str, Box]], enlarge: tuple[float, float]) -> _Page:
    grey = np.asarray(image.convert("L"))
    text, centres, sure, unsure = "", [], [], []
    for line, box in lines:
        characters = characters_of(line, box, grey)
        (sure if characters else unsure).append(_widened(box, image.size))
        text += "".join(each.char for each in characters)
        centres += [(each.x, each.y) for each in characters]
    arrays = (np.array(rows, dtype=np.float32).reshape(-1, n) for rows, n in ((centres, 2), (sure, 4), (unsure, 4)))
    return _Page(path, enlarge, text, *arrays)


def _widened(box: Box, size: tuple[int, int]) -> Box:
    """Return a box with its margin, as far as it lies in a picture of `size` (width, height)."""
    width, height = size
    x0, y0, x1, y1 = box
    return max(0, x0 - MARGIN), max(0, y0 - MARGIN), min(width, x1 + MARGIN), min(height, y1 + MARGIN)


def characters_of(line: str, box: Box, grey: np.ndarray) -> list[Character]:
    """Return the characters of a line where they are printed in a box, or none if the ink there is not of the line.

    grey: [height, width] uint8. Words are found by the gaps between them; each must be as wide as it should be beside
    the others and beside its height. The characters of a word lie along its ink by their widths in a plain face.
    """
    words = line.split()
    if not words or not (line.isascii() and line.isprintable()) or not any(char.isalnum() for char in line):
        return []
    x0, y0, x1, y1 = (round(side) for side in box)
    left, top = max(0, x0 - MARGIN), max(0, y0 - MARGIN)
    inside = grey[top : y1 + MARGIN, left : x1 + MARGIN]
    outside = max(-x0, -y0, x1 - grey.shape[1], y1 - grey.shape[0])
    ink = _ink(inside) if outside <= MAX_OUTSIDE and min(inside.shape) >= MIN_SIDE else None
    runs = [] if ink is None else _word_runs(np.flatnonzero(ink.any(0)), len(words))
    if not runs:
        return []
    rows = np.flatnonzero(ink.any(1))
    capital, middle = _capital(line, rows[0], rows[-1] + 1)
    widths = np.array([_ink_width(word) for word in words])
    printed = np.array([end - start for start, end in runs])
    size = printed.sum() / widths.sum()
    is_off = np.abs(printed - size * widths) > np.maximum(MAX_OFF_PIXELS, MAX_OFF * size * widths)
    if is_off.any() or not LEAST_WIDTH < size * load_face("", FACE_SIZE).cap_height / capital < MOST_WIDTH:
        return []
    return [
        Character(char, left + start + (end - start) * place, top + middle)
        for word, (start, end) in zip(words, runs, strict=True)
        for char, place in zip(word, _places(word), strict=True)
    ]


def _ink(inside: np.ndarray) -> np.ndarray | None:
    """Return which pixels of a box are ink, or None where it is not print on a plain ground."""
    ground = int(np.bincount(inside.reshape(-1) >> 3).argmax()) * 8 + 4
    contrast = np.abs(inside.astype(np.int16) - ground)
    darkest = contrast.max()
    ink = contrast > 0.4 * darkest
    return ink if darkest >= MIN_CONTRAST and ink.mean() < 0.6 else None


def _word_runs(columns: np.ndarray, num_words: int) -> list[tuple[int, int]]:
    """Return (start, end) of words, given the columns with ink: the widest gaps part them; none if too few."""
    steps = np.diff(columns)
    gaps = np.flatnonzero(steps > 1)
    if len(gaps) < num_words - 1:
        return []
    # Stable, and from the widest on.
    cuts = np.sort(gaps[np.argsort(-steps[gaps], kind="stable")][: num_words - 1])
    starts, ends = columns[np.append(0, cuts + 1)], columns[np.append(cuts, len(columns) - 1)] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _capital(line: str, top: int, bottom: int) -> tuple[float, float]:
    """Return how high a capital of a line is whose ink reaches from `top` to `bottom`, and where its middle lies."""
    chars = set(line) - {" "}
    above = SHORT if chars <= SHORT_CHARS else 1.0
    below = 0.28 if chars & LOW_CHARS else 0.15 if chars & LITTLE_LOW_CHARS else 0.0
    capital = (bottom - top) / (above + below)
    return capital, bottom - capital * (below + 0.5)


@functools.lru_cache(maxsize=4096)
def _ink_width(word: str) -> float:
    """Return how wide the ink of a word is in a plain face of FACE_SIZE."""
    left, _, right, _ = load_face("", FACE_SIZE).font.getbbox(word, anchor="ls")
    return right - left


@functools.lru_cache(maxsize=4096)
def _places(word: str) -> list[float]:
    """Return where along the ink of a word the middles of its characters lie, from 0 to 1."""
    face = load_face("", FACE_SIZE)
    left, _, right, _ = face.font.getbbox(word, anchor="ls")
    advances = np.array([face.advance(char) for char in word])
    return ((np.cumsum(advances) - advances / 2 - left) / (right - left)).clip(0, 1).tolist()
