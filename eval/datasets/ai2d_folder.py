"""AI2D as the Allen Institute publishes it: `questions/`, `images/`, `annotations/`, and the list of test ids.

`questions/12.png.json` holds `{"imageName": "12.png", "questions": {TEXT: {"questionId", "answerTexts",
"correctAnswer", "abcLabel"}}}`. Where `abcLabel` is set, the question speaks of letters that are not in the picture:
`annotations/12.png.json` says where words stand (`rectangle`) and which letter takes the place of each
(`replacementText`), and whoever uses the data draws them.

Source: big_vision/datasets/ai2d/ai2d.py and allenai/molmo, olmo/hf_datasets/ai2d.py, which read the same archive.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.datasets.ai2d_letters import LetterBox, draw_letters
from eval.datasets.json_text import parse_json
from eval.datasets.pictures import Picture, picture_at
from eval.datasets.row import Row, a_kind, damaged
from eval.datasets.table import Table
from eval.records import ImageRef
from vlm.errors import VLMError

TEST_IDS = "ai2d_test_ids.csv"
VARIANTS = ("opaque", "transparent", "raw")
NO_OPTION = "{}"
"""How an option that is not offered is written."""


def ai2d_tables(folder: Path) -> list[Table]:
    """Return the tables of the test questions and of the others; none of another layout.

    Raises: VLMError when the list of test ids is missing, for without it train and test questions would be mixed.
    """
    folder = folder if (folder / "questions").is_dir() else folder / "ai2d"
    if not ((folder / "questions").is_dir() and (folder / "images").is_dir()):
        return []
    ids = next((path for path in (folder / TEST_IDS, folder.parent / TEST_IDS) if path.is_file()), None)
    if ids is None:
        raise VLMError(
            "invalid_request",
            f"{folder.name:.60} has AI2D's questions/ and images/ but not {TEST_IDS}; expected it beside them, to tell "
            "test from train; put it there",
        )
    test_ids = frozenset(ids.read_text(encoding="utf-8", errors="replace").split())

    def table(part: str) -> Table:
        return Table(
            kind="ai2d folder",
            path=folder / "questions",
            columns=("question", "answerTexts", "correctAnswer", "abcLabel"),
            part=part,
            read=lambda wanted: _rows(folder, part, test_ids),
        )

    return [table("test"), table("train")]


def _rows(folder: Path, part: str, test_ids: frozenset[str]) -> Iterator[Row]:
    for path in sorted((folder / "questions").glob("*.json"), key=_by_number):
        if (path.name.partition(".")[0] in test_ids) != (part == "test"):
            continue
        page = _page(path)
        name = page["imageName"]
        raw = picture_at(folder / "images", name)
        for number, (question, record) in enumerate(page["questions"].items(), start=1):
            if not isinstance(record, dict):
                raise damaged(path, number, "questions", a_kind(record), "an object")
            # Without abcLabel, no letters are drawn in any variant.
            variants = VARIANTS if record.get("abcLabel") else ("raw",)
            pictures = {variant: (_variant(folder, name, raw, variant),) for variant in variants}
            values = record | {"question": question}
            yield Row(file=path, number=number, values=values, pictures=pictures, part=part)


def _by_number(path: Path) -> tuple[int, str]:
    digits = path.name.partition(".")[0]
    return (int(digits) if digits.isdecimal() else -1, path.name)


def _page(path: Path) -> dict:
    page = parse_json(path, path.read_bytes(), 'an object with "imageName" and "questions"')
    for column, kind in (("imageName", str), ("questions", dict)):
        found = page.get(column) if isinstance(page, Mapping) else None
        if not isinstance(found, kind):
            raise damaged(path, 1, column, "nothing of use", "a name" if kind is str else "an object a question")
    return page


def _variant(folder: Path, name: str, raw: Picture, variant: str) -> Picture:
    if variant == "raw" or raw.problem:
        return raw
    annotation = folder / "annotations" / f"{name}.json"
    ref = ImageRef(id=f"{name}@{variant}", load=_Lettered(folder / "images" / name, annotation, variant))
    if not annotation.is_file():
        return Picture(ref, f"annotation file {annotation.name[:80]!r} is missing")
    return Picture(ref)


@dataclass(frozen=True, slots=True)
class _Lettered:
    """A picture with its letters, to be called for its bytes."""

    image: Path
    annotation: Path
    variant: Literal["opaque", "transparent"]

    def __call__(self) -> bytes:
        try:
            boxes = json.loads(self.annotation.read_bytes())["text"].values()
            places = [LetterBox.of(box["replacementText"], box["rectangle"]) for box in boxes]
            content = self.image.read_bytes()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise VLMError(
                "invalid_request",
                f"{self.annotation.name:.60} does not say where letters go; expected text boxes with rectangle and "
                "replacementText; fetch the annotations again",
            ) from None
        return draw_letters(content, places, transparent=self.variant == "transparent")
