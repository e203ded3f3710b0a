"""Real charts with people's questions, from a folder in ChartQA's layout, to be learned beside drawn ones.

Nothing says where on a real chart an answer stands, but a model that can read learns from the answer alone.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from vision_encoder.image_input import read_image
from vision_encoder.image_limits import ImageError
from vision_encoder.preprocess import ImageProcessor
from vlm.errors import VLMError, shown

CANVAS = (2, 2)
"""Of the charts that are taken: all pictures of a batch have the same, and nearly all real charts have this."""
KEYS = ("imgname", "query", "label")
MAX_STRETCH = 0.12
"""By how much each side of a picture is made longer or shorter."""
MAX_SHIFT = 8
"""How far it is moved to the right and down, in pixels as it is seen."""
MAX_JITTER = 0.15
"""Of brightness and of contrast."""
NUM_TRIES = 8


class RealCharts:
    """The charts of a folder that fill two by two tiles."""

    def __init__(self, folder: Path, processor: ImageProcessor, *, silent: bool = False):
        """Look at every chart once.

        Raises: VLMError with `invalid_request` for a question that is not as in ChartQA or a chart that cannot be read,
        or where there are none.
        """
        self.processor = processor
        self.charts: list[tuple[Path, list[tuple[str, str]]]] = []
        asked = read_questions(folder)
        for name, questions in tqdm(asked.items(), disable=silent or None, unit="picture", desc="real charts"):
            path = folder / "png" / name
            try:
                image = read_image(path)
            except ImageError as error:
                raise VLMError("invalid_request", f"png/{name:.80}: {error}") from None
            if processor.placement((image.height, image.width))[0] == CANVAS:
                self.charts.append((path, questions))
        if not self.charts:
            raise VLMError(
                "invalid_request",
                f"none of {len(asked)} charts in {folder.name} fills {CANVAS[0]} by {CANVAS[1]} tiles; "
                f"give charts larger than {processor.config.tile_size} pixels both ways",
            )

    def choose(self, rng: np.random.Generator) -> tuple[Image.Image, list[tuple[str, str]]]:
        """Return one of the charts, varied, and its questions and answers."""
        path, questions = self.charts[rng.integers(len(self.charts))]
        return varied(read_image(path), rng, self.processor).image, questions


class Varied(NamedTuple):
    """A picture that was changed at random: what was at (x, y) is at `scale * (x, y) + shift`."""

    image: Image.Image
    scale: tuple[float, float]
    """Along x and y."""
    shift: tuple[int, int]
    """Along x and y, in pixels."""


def varied(image: Image.Image, rng: np.random.Generator, processor: ImageProcessor, enlarge: float = 1.0) -> Varied:
    """Return a picture that fills CANVAS, `enlarge` times as large, then stretched, moved and lit a little otherwise.

    It is no larger than the canvas, so that it is resized once, here, and not again by `processor`.
    """
    limit = CANVAS[0] * processor.config.tile_size
    for _ in range(NUM_TRIES):
        shift = tuple(int(pixels) for pixels in rng.integers(0, MAX_SHIFT + 1, 2))
        size = _stretched(image.size, rng.uniform(1 - MAX_STRETCH, 1 + MAX_STRETCH, 2) * enlarge, shift, limit)
        if processor.placement((size[1] + shift[1], size[0] + shift[0]))[0] == CANVAS:
            break
    else:
        # Nearly twice as wide as it is high, or the other way round: it fills the canvas only as it is.
        shift, size = (0, 0), _stretched(image.size, np.full(2, enlarge), (0, 0), limit)
    smooth = Image.Resampling.BICUBIC if size[0] > image.width else Image.Resampling.BILINEAR
    moved = Image.new("RGB", (size[0] + shift[0], size[1] + shift[1]), image.getpixel((0, 0)))
    moved.paste(image.resize(size, smooth), shift)
    return Varied(_lit(moved, rng), (size[0] / image.width, size[1] / image.height), shift)


def _stretched(size: tuple[int, int], factors: np.ndarray, shift: tuple[int, int], limit: int) -> tuple[int, int]:
    """Return (width, height) times what fits a canvas of side `limit`, at most 1, and times `factors`."""
    wished = np.array(size) * min(1.0, limit / (max(size) * factors.mean())) * factors
    width, height = wished * min(1.0, *(limit - np.array(shift)) / wished)
    return max(1, round(width)), max(1, round(height))


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a picture with brightness and contrast changed a little, the latter about the middle grey."""
    brightness, contrast = rng.uniform(1 - MAX_JITTER, 1 + MAX_JITTER, 2)
    levels = ((np.arange(256) - 127.5) * contrast + 127.5) * brightness
    return image.point(levels.clip(0, 255).round().astype(int).tolist() * 3)


def read_questions(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Return (question, answer) by name of chart, of a folder in ChartQA's layout: `png` and any number of JSON files.

    Raises: VLMError with `invalid_request` where there is none, or one is not as there.
    """
    asked: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(data.glob("*.json")):
        for place, row in enumerate(_rows(path)):
            name, question, answer = _checked(row, f"row {place} of {path.name!s:.60}")
            asked.setdefault(name, []).append((question, answer))
    if not asked:
        raise VLMError("invalid_request", f"{data.name} holds no questions; expected *.json and png/ as in ChartQA")
    return asked


def _rows(path: Path) -> list:
    """Return what a file of questions lists."""
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise _bad(f"{path.name!s:.60} cannot be read: {error.strerror}", "check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise _bad(f"{path.name!s:.60} is no JSON ({error!s:.80})", "download it again, or take it out") from None
    if not isinstance(rows, list):
        raise _bad(f"{path.name!s:.60} is {shown(rows)}", "mend it, or take it out if it is no file of questions")
    return rows


def _checked(row: object, place: str) -> tuple[str, str, str]:
    """Return the name of a chart, a question and its answer."""
    if not isinstance(row, dict):
        raise _bad(f"{place} is {shown(row)}", "mend it or take it out")
    name, question, answer = (row.get(key) for key in KEYS)
    # What pandas makes of an empty answer is not a number.
    if type(answer) is int or (type(answer) is float and math.isfinite(answer)):
        answer = str(answer)
    is_good = _is_file_name(name), _is_text(question), _is_text(answer)
    for key, good in zip(KEYS, is_good, strict=True):
        if not good:
            raise _bad(f"{key} of {place} is {shown(row[key]) if key in row else 'missing'}", "mend it or take it out")
    return name, question, answer


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_file_name(value: object) -> bool:
    """Return whether `value` names a file of the folder it is looked for in, and of no other."""
    return _is_text(value) and value.isprintable() and Path(value).name == value


def _bad(found: str, advice: str) -> VLMError:
    expected = "expected a list of rows with imgname, query and label, as in ChartQA: a file of png/ and two texts"
    return VLMError("invalid_request", f"{found}; {expected}; {advice}")
