"""ChartQA as its authors publish it: `png/` beside `test_human.json` and `test_augmented.json`, also for train and val.

The folder may hold one part, or a folder a part (`train/`, `val/`, `test/`), as the archive "ChartQA Dataset" does.
Each file is a list of `{"imgname": ..., "query": ..., "label": ...}`.

Source: vis-nlp/ChartQA, README.md.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from eval.datasets.json_text import parse_json
from eval.datasets.pictures import picture_at
from eval.datasets.row import Row, a_kind, damaged
from eval.datasets.table import Table, part_of

_HALVES = ("human", "augmented")


def chartqa_tables(folder: Path) -> list[Table]:
    """Return a table for each questions file in the folder or at most two folders further down."""
    tables = []
    for place in _with_charts(folder, depth=2):
        paths = sorted(path for half in _HALVES for path in place.glob(f"*_{half}.json"))
        tables += [_table(path) for path in paths]
    return tables


def _with_charts(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if "png" in names:
        yield folder
    elif depth:
        for name in names:
            yield from _with_charts(folder / name, depth - 1)


def _table(path: Path) -> Table:
    return Table(
        kind="chartqa folder",
        path=path,
        columns=("imgname", "query", "label"),
        part=part_of(path),
        read=lambda wanted: _rows(path),
    )


def _rows(path: Path) -> Iterator[Row]:
    records = parse_json(path, path.read_bytes(), "a list of questions")
    if isinstance(records, dict):
        records = records.get("data")
    if not isinstance(records, list):
        raise damaged(path, 1, "1", a_kind(records), "a list of questions")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise damaged(path, number, "query", a_kind(record), 'an object with "query" and "label"')
        row = Row(file=path, number=number, values=record, part=part_of(path))
        name = row.text("imgname")
        half = next(half for half in _HALVES if path.stem.endswith(half))
        yield Row(
            file=path,
            number=number,
            values=record | {"half": half},
            pictures={"image": (picture_at(path.parent / "png", name),)},
            part=row.part,
        )
