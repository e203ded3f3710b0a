"""Plain JSON lines, one question each, with the paths of its pictures relative to the file.

    {"id": "7", "image": "charts/7.png", "question": "Which year is highest?", "answer": "2019"}
    {"image": ["a.png", "b.png"], "question": "Which is older?", "options": ["the first", "the second"], "answer": "B"}

`image` (or `images`) is a path or a list of them; which other fields there must be is the task's to say.
"""

from collections.abc import Iterator
from pathlib import Path

from eval.datasets.json_text import parse_json
from eval.datasets.pictures import Picture, picture_at
from eval.datasets.row import Row, a_kind, damaged
from eval.datasets.table import Table, part_named, part_of
from vlm.errors import shown


def jsonl_table(path: Path) -> Table:
    """Return the table of a JSON lines file; its columns are the fields of the first line."""
    first = next(_records(path), (1, {}))[1]
    columns = tuple("image" if name == "images" else name for name in first)
    return Table(kind="jsonl", path=path, columns=columns, part=part_of(path), read=lambda wanted: _rows(path))


def _records(path: Path) -> Iterator[tuple[int, dict]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            record = parse_json(path, line.rstrip(b"\r\n"), "an object", line=number)
            if not isinstance(record, dict):
                raise damaged(path, number, "1", a_kind(record), "an object")
            yield number, record


def _rows(path: Path) -> Iterator[Row]:
    part = part_of(path)
    for number, record in _records(path):
        split = record.get("split")
        row_part = part_named(split) if isinstance(split, str) else None
        pictures = {"image": _pictures(path, number, record)}
        yield Row(file=path, number=number, values=record, pictures=pictures, part=part or row_part)


def _pictures(path: Path, number: int, record: dict) -> tuple[Picture, ...]:
    column = "image" if "image" in record else "images"
    names = record.get(column)
    names = [names] if isinstance(names, str) else names or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise damaged(path, number, column, shown(names), "a path or a list of paths")
    return tuple(picture_at(path.parent / name, name) for name in names)
