"""Real charts with people's questions, from a folder in ChartQA's layout, to be learned beside drawn ones.

Nothing says where on a real chart an answer stands, but a model that can read learns from the answer alone.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vision_encoder.image_input import read_image
from vision_encoder.image_limits import ImageError
from vision_encoder.preprocess import ImageProcessor
from vlm.errors import VLMError, shown
from vlm.training.reader.real_pictures import CANVAS, read_rows, varied

KEYS = ("imgname", "query", "label")


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


def read_questions(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Return (question, answer) by name of chart, of a folder in ChartQA's layout: `png` and any number of JSON files.

    Raises: VLMError with `invalid_request` where there is none, or one is not as there.
    """
    asked: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(data.glob("*.json")):
        for place, row in enumerate(read_rows(path, _bad, "mend it, or take it out if it is no file of questions")):
            name, question, answer = _checked(row, f"row {place} of {path.name!s:.60}")
            asked.setdefault(name, []).append((question, answer))
    if not asked:
        raise VLMError("invalid_request", f"{data.name} holds no questions; expected *.json and png/ as in ChartQA")
    return asked


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
