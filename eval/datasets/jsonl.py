"""Plain JSON lines, one question each, with the paths of its pictures relative to the file.

    {"id": "7", "image": "charts/7.png", "question": "Which year is highest?", "answer": "2019"}
    {"image": ["a.png", "b.png"], "question": "Which is older?", "options": ["the first", "the second"], "answer": "B"}

`image` (or `images`) is a path or a list of them; which other fields there must be is the task's to say. `answers` is
taken for `answer` there.

Each line stands by itself: one that is no JSON object in UTF-8, or of no use to the task, is the problem of its own
sample, named by a digest of the line. A file without any good line is refused.
"""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from eval.datasets.json_text import parse_json
from eval.datasets.pictures import picture_at
from eval.datasets.row import Row, a_kind, damaged
from eval.datasets.table import Table, part_named, part_of
from vlm.errors import VLMError, shown

MAX_KNOWN_PICTURES = 1024
_LINES_LOOKED_AT = 1000
"""Of good ones, for the columns of a file."""
_COLUMNS = {"images": "image", "answers": "answer"}
"""Fields that go by the name of another column."""


class _Line(Struct):
    number: int
    content: bytes
    record: dict
    problem: VLMError | None


def jsonl_table(path: Path) -> Table:
    """Return the table of a JSON lines file; its columns are the fields of the first 1,000 lines that can be read.

    Raises: VLMError when none can.
    """
    good = (line.record for line in _lines(path) if line.problem is None)
    names = [name for record in itertools.islice(good, _LINES_LOOKED_AT) for name in record]
    if not names and (problem := next((line.problem for line in _lines(path) if line.problem), None)):
        raise problem
    columns = tuple(dict.fromkeys(_COLUMNS.get(name, name) for name in names))
    return Table(kind="jsonl", path=path, columns=columns, part=part_of(path), read=lambda wanted: _rows(path))


def _lines(path: Path) -> Iterator[_Line]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield _line(path, number, line.rstrip(b"\r\n"))


def _line(path: Path, number: int, content: bytes) -> _Line:
    try:
        record = parse_json(path, content, "an object", line=number)
        if not isinstance(record, dict):
            raise damaged(path, number, "1", a_kind(record), "an object")
    except VLMError as error:
        return _Line(number, content, {}, error)
    return _Line(number, content, record, None)


def _rows(path: Path) -> Iterator[Row]:
    part = part_of(path)
    # Questions about one picture mostly follow each other.
    picture = functools.lru_cache(MAX_KNOWN_PICTURES)(functools.partial(picture_at, path.parent))
    for line in _lines(path):
        split = line.record.get("split")
        row_part = part_named(split) if isinstance(split, str) else None
        problem, pictures = line.problem, ()
        try:
            names = _picture_names(path, line.number, line.record)
            pictures = tuple(map(picture, names))
        except VLMError as error:
            problem = error
        yield Row(
            file=path,
            number=line.number,
            values=line.record,
            pictures={"image": pictures},
            part=part or row_part,
            line=line.content,
            problem=problem,
        )


def _picture_names(path: Path, number: int, record: dict) -> list[str]:
    column = "image" if "image" in record else "images"
    names = record.get(column)
    if names and isinstance(names, str):
        return [names]
    names = [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise damaged(path, number, column, shown(names), "a path or a list of paths")
    return names
