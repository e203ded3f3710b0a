"""Data sets as people have them on disk, one file a format; here, which format lies in a folder.

Every format becomes tables with named columns (`table.py`) of rows (`row.py`). What the columns mean is for the tasks
to say.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from eval.datasets.ai2d_folder import ai2d_tables
from eval.datasets.chartqa_folder import chartqa_tables
from eval.datasets.jsonl import jsonl_table
from eval.datasets.parquet import parquet_table
from eval.datasets.table import Kind, Table, part_of
from eval.datasets.tsv import tsv_table
from vlm.errors import VLMError

_MAX_DEPTH = 5
"""Of folders that are searched; the cache of the Hugging Face Hub needs four."""
_SUFFIXES: dict[Kind, str] = {"parquet": ".parquet", "tsv": ".tsv", "jsonl": ".jsonl"}
_OPEN: dict[Kind, Callable[[Path], Table]] = {"parquet": parquet_table, "tsv": tsv_table, "jsonl": jsonl_table}


def find_tables(path: Path, kinds: Collection[Kind]) -> list[Table]:
    """Return the tables of these kinds in a folder, or the one in a file, in an order that is always the same.

    Those of files that cannot be opened hold the error. Raises: VLMError when there is nothing at `path`.
    """
    if path.is_file():
        return [_opened(path, kind) for kind in kinds if _SUFFIXES.get(kind) == path.suffix.lower()]
    if not path.is_dir():
        raise VLMError(
            "invalid_request", f"the data {path.name[:80]!r} is not there; expected a folder or a file; check the path"
        )
    suffixes = {suffix: kind for kind, suffix in _SUFFIXES.items() if kind in kinds}
    found: dict[Kind, list[Path]] = {kind: [] for kind in suffixes.values()}
    for file in _files(path, tuple(suffixes)):
        kind = suffixes[file.suffix.lower()]
        # Data sets of the Hugging Face Hub lie in folders, the others beside each other.
        if kind == "parquet" or file.parent == path:
            found[kind].append(file)
    tables = [_opened(file, kind) for kind, files in found.items() for file in sorted(files) if file.is_file()]
    if "chartqa folder" in kinds:
        tables += chartqa_tables(path)
    if "ai2d folder" in kinds:
        tables += ai2d_tables(path)
    return tables


def check_whole(tables: Collection[Table]) -> None:
    """Raise a VLMError when of files numbered as in `test-00000-of-00003.parquet` some are missing, or all come twice.

    They come twice where the cache of the Hugging Face Hub holds two snapshots.
    """
    snapshots = {part for table in tables for name, part in itertools.pairwise(table.path.parts) if name == "snapshots"}
    if len(snapshots) > 1:
        raise VLMError(
            "invalid_request",
            f"the folder holds {len(snapshots)} snapshots of the data; expected one; give the folder of the one meant",
        )
    found: dict[tuple, set[int]] = {}
    for table in tables:
        name = re.match(r"(.*)-(\d{5})-of-(\d{5})", table.path.name)
        if name:
            found.setdefault((table.path.parent, name[1], int(name[3])), set()).add(int(name[2]))
    for (_, name, count), numbers in found.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            raise VLMError(
                "invalid_request",
                f"{len(missing)} of {count} files are missing, the first {name:.60}-{missing[0]:05}-of-{count:05}; "
                "expected all of them; fetch the rest, or give one file to read that alone",
            )


def contents(path: Path) -> str:
    """Return in a few words what a folder or file holds, for the message that it was not recognised."""
    if path.is_file():
        return f"{path.name:.60} is no file of a known kind"
    kinds = Counter(file.suffix.lower() or "without suffix" for file in _files(path))
    folders = [f"{each.name:.20}/" for each in sorted(path.iterdir()) if each.is_dir() and each.name[0] != "."]
    files = [f"{count} {kind}" for kind, count in kinds.most_common(4)]
    return f"{path.name or 'the folder':.40} holds " + (", ".join(folders[:4] + files) or "nothing")


def _opened(file: Path, kind: Kind) -> Table:
    try:
        return _OPEN[kind](file)
    except VLMError as error:
        return Table(kind=kind, path=file, columns=(), part=part_of(file), read=lambda wanted: iter(()), error=error)


def _files(folder: Path, suffixes: tuple[str, ...] = ("",)) -> Iterator[Path]:
    """Yield the files that end in one of `suffixes`, in `folder` and at most `_MAX_DEPTH` folders further down."""
    for place, folders, names in os.walk(folder):
        at_end = len(Path(place).relative_to(folder).parts) >= _MAX_DEPTH
        folders[:] = [] if at_end else sorted(each for each in folders if not each.startswith("."))
        for name in names:
            # Beside a table there may be a hundred thousand pictures: no Path is made of those.
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(place) / name
