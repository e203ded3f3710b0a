"""What samples are grouped by: the fields of their data set, and what can be told from question, answer and picture."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from eval.records import Prediction
from eval.report.samples import ComparedSample, PictureName
from eval.scorers.quantity import read_quantity
from eval.scoring import MAX_GROUPS

ANSWER_KIND, QUESTION_WORD, NUM_TILES, PICTURE_SIZE = "answer kind", "question begins with", "tiles", "picture size"
_TOLD = (ANSWER_KIND, QUESTION_WORD, NUM_TILES, PICTURE_SIZE)
MAX_FACETS = 20
_MAX_CHARS = 80
"""Of a value that names a group."""
_YES_OR_NO = re.compile(r"am|are|can|could|did|do|does|had|has|have|is|should|was|were|will|would")
_QUESTION_WORD = re.compile(r"what|which|who|whose|whom|when|where|why|how")
_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
_SIZES = ((500, "1 to 500 pixels"), (1000, "501 to 1000 pixels"), (2000, "1001 to 2000 pixels"))

Size = tuple[int, int]
"""(height, width) in pixels."""


def facets(
    samples: Sequence[ComparedSample], sizes: Mapping[PictureName, Size], processor: Mapping[str, object] | None
) -> dict[str, list[str | None]]:
    """Return, for each name that makes groups of `samples`, the value of every sample; None where it has none.

    sizes: of the pictures that could be read. processor: the tiles of the model, as a manifest holds them.
    """
    found = [
        {**_of_data(sample.record), **_of_record(sample.record), **_of_pictures(sample, sizes, processor)}
        for sample in samples
    ]
    names = dict.fromkeys(name for each in found for name in each)
    columns = {name: [each.get(name) for each in found] for name in names}
    making = {name: values for name, values in columns.items() if _makes_groups(values)}
    extra = len(making) - MAX_FACETS
    too_many = [name for name in making if name not in _TOLD][-extra:] if extra > 0 else []
    return {name: values for name, values in making.items() if name not in too_many}


def _makes_groups(values: Sequence[str | None]) -> bool:
    distinct = {*values} - {None}
    return 1 < len(distinct) <= MAX_GROUPS and max(map(len, distinct)) <= _MAX_CHARS


def in_order(values: Sequence[str | None]) -> list[str]:
    """Return the distinct values, numbers in them by size."""
    return sorted({value for value in values if value is not None}, key=_natural)


def _natural(value: str) -> list[tuple[int, int, str]]:
    """Digits sort as the numbers they are, and before letters."""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+|[0-9]+", value)
    return [(0, int(part), "") if part.isdecimal() and len(part) <= 18 else (1, 0, part) for part in parts]


def _of_data(record: Prediction) -> dict[str, str]:
    return {name: str(value) for name, value in record.fields.items() if value is not None}


def _of_record(record: Prediction) -> dict[str, str]:
    kind = answer_kind(record.target, record.options)
    return {QUESTION_WORD: question_word(record.question)} | ({ANSWER_KIND: kind} if kind else {})


def _of_pictures(
    sample: ComparedSample, sizes: Mapping[PictureName, Size], processor: Mapping[str, object] | None
) -> dict[str, str]:
    known = [sizes[name] for name in sample.pictures if name in sizes]
    if not known or len(known) < len(sample.pictures):
        return {}
    longest = max(map(max, known))
    found = {PICTURE_SIZE: next((text for side, text in _SIZES if longest <= side), "2001 pixels and more")}
    tile_size, max_tiles = ((processor or {}).get(name) for name in ("tile_size", "max_tiles"))
    if isinstance(tile_size, int) and isinstance(max_tiles, int) and tile_size > 0 and 0 < max_tiles <= 64:
        found[NUM_TILES] = str(sum(num_tiles(size, tile_size=tile_size, max_tiles=max_tiles) for size in known))
    return found


def answer_kind(targets: Sequence[str], options: Sequence[str] = ()) -> str | None:
    """Return what the accepted answer is: "year", "percentage", "number", "list", "letter", "yes or no" or "text".

    Of several the most frequent counts; of options the right one's text does. None where no answer is known.
    """
    if not targets:
        return None
    answer = Counter(targets).most_common(1)[0][0].strip()
    if options and len(answer) == 1 and 0 <= ord(answer) - ord("A") < len(options):
        answer = options[ord(answer) - ord("A")].strip()
    if answer.startswith("[") and answer.endswith("]"):
        return "list"
    if answer.casefold() in ("yes", "no"):
        return "yes or no"
    if _YEAR.fullmatch(answer):
        return "year"
    if (quantity := read_quantity(answer)) is not None:
        return "percentage" if quantity.is_percent else "number"
    return "letter" if len(answer) == 1 and answer.isalpha() else "text"


def question_word(question: str) -> str:
    """Return how the question asks: "how many", "which", "is, does, ...", or "other"."""
    words = re.findall(r"\w+", question[:200].casefold())[:2]
    if words[:1] == ["how"] and words[1:] in (["many"], ["much"]):
        return " ".join(words)
    first = words[0] if words else ""
    if _YES_OR_NO.fullmatch(first):
        return "is, does, ..."
    return first if _QUESTION_WORD.fullmatch(first) else "other"


def num_tiles(size: Size, *, tile_size: int, max_tiles: int) -> int:
    """Return how many tiles a picture is cut into.

    Source: llama-models models/llama3/multimodal/image_transform.py, VariableSizeImageTransform; the canvas that
    upscales least, else downscales least, then the smallest. float32 decides ties, as there.
    """
    import numpy as np

    sides = range(1, max_tiles + 1)
    canvases = np.array([(rows, cols) for rows in sides for cols in sides if rows * cols <= max_tiles])
    scales = (canvases.astype(np.float32) * np.float32(tile_size) / np.array(size, dtype=np.float32)).min(axis=1)
    best = scales[scales >= 1].min() if (scales >= 1).any() else scales.max()
    return int(canvases[scales == best].prod(axis=1).min())
