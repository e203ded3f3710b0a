"""Which of a task's formats lies at a path, and which of its tables are meant."""

import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from eval.datasets import check_whole, contents, find_tables
from eval.datasets.table import Table
from eval.tasks.task import Format, Task
from vlm.errors import VLMError

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """What is read."""

    layout: Format
    tables: list[Table]
    parts: set[str]
    """Those that the tables belong to; empty where the data has none."""


def recognise(task: Task, path: Path, parts: set[str]) -> Found:
    """Return what a task finds at `path`; without `parts`, those are taken that it is scored on.

    A table of the right kind with other columns may belong to another benchmark: it is left out, and a warning says so.

    Raises: VLMError for what cannot be recognised or opened, or is not whole.
    """
    path = _own_folder(task, path)
    layout, tables, misfits = _fitting(task, path)
    parts = parts or _default_parts(task, tables, misfits)
    chosen, left_out = _of_parts(tables, parts), _of_parts(misfits, parts)
    if not chosen:
        raise _not_there(tables, left_out, parts, layout)
    for table in chosen:
        if table.error is not None:
            raise table.error
    if path.is_dir():
        check_whole(chosen)
    if left_out:
        others = f", and {len(left_out) - 1} more files" if left_out[1:] else ""
        columns = ", ".join(layout.columns)
        logger.warning("%s: left out: %s; expected %s%s", task.name, _has(left_out[0]), columns, others)
    return Found(layout, chosen, parts)


def _own_folder(task: Task, path: Path) -> Path:
    """Return the folder in `path` that is called as the task is, for one path may hold the data of several tasks."""
    if not path.is_dir():
        return path
    # Beside the table there may be a hundred thousand pictures: no Path is made of those.
    own = [path / name for name in sorted(name for name in os.listdir(path) if name.lower() == task.name)]
    return next((each for each in own if each.is_dir()), path)


def _fitting(task: Task, path: Path) -> tuple[Format, list[Table], list[Table]]:
    """Return the one format of the task that lies at `path`, its tables, and those of its kind with other columns."""
    tables = find_tables(path, {layout.kind for layout in task.formats})
    fitting: dict[int, list[Table]] = {}
    for table in tables:
        for number, layout in enumerate(task.formats):
            if layout.fits(table):
                fitting.setdefault(number, []).append(table)
                break
    broken = [table for table in tables if table.error is not None]
    if not fitting and broken:
        raise broken[0].error
    if not fitting:
        raise _unrecognised(task, path, tables)
    if len(fitting) > 1:
        names = " and ".join(f"{tables[0].path.name:.40} ({tables[0].kind})" for tables in fitting.values())
        raise VLMError(
            "invalid_request",
            f"{path.name:.40} holds {task.title} in two ways, as in {names}; expected one; give the file that is meant",
        )
    number, own = fitting.popitem()
    layout = task.formats[number]
    misfits = [table for table in tables if table.kind == layout.kind and not (table.error or layout.fits(table))]
    if layout.kind == "tsv":
        # VLMEvalKit keeps the files of all its benchmarks in one folder.
        misfits = _of_own_name(task, misfits)
        own = _of_own_name(task, own) or own
    return layout, own + [table for table in broken if table.kind == layout.kind], misfits


def _of_own_name(task: Task, tables: list[Table]) -> list[Table]:
    return [table for table in tables if re.match(task.tsv_names, table.path.name, re.IGNORECASE)]


def _unrecognised(task: Task, path: Path, tables: list[Table]) -> VLMError:
    found = contents(path)
    expected = "as " + ", ".join(dict.fromkeys(layout.said for layout in task.formats))
    if tables:
        found = _has(tables[0])
    if tables and tables[0].columns:
        wanted = [", ".join(layout.columns) for layout in task.formats if layout.kind == tables[0].kind]
        expected = f"with {' or '.join(wanted):.120}"
    columns = "; ".join(f"{layout.kind} {', '.join(layout.columns)}" for layout in task.formats)
    fix = f"give that folder or file, see vlm-eval list: {columns}"
    return VLMError("invalid_request", f"{found}; expected {task.title} {expected}; {fix}")


def _has(table: Table) -> str:
    """Return in a few words what a table holds."""
    names = ", ".join(table.columns)
    if not names:
        return f"{table.path.name:.60} is empty"
    return f"{table.path.name:.40} has the columns {names:.60}" + ("…" if len(names) > 60 else "")


def _default_parts(task: Task, tables: list[Table], misfits: list[Table]) -> set[str]:
    """Return the only part, or of several the one that the task is scored on.

    That one also where only a table with other columns is of it: no other part is to take its place unnoticed.
    """
    found = {table.part for table in tables if table.part}
    is_misfit = task.part is not None and any(table.part == task.part for table in misfits)
    if len(found) == 1 and not is_misfit:
        return found
    if found and task.part not in found and not is_misfit:
        raise VLMError(
            "invalid_request",
            f"the data has the parts {', '.join(sorted(found))} and not {task.part}, which {task.title} is scored on; "
            f"say which is meant, for example split={min(found)!r}",
        )
    return {task.part} if task.part else set()


def _of_parts(tables: list[Table], parts: set[str]) -> list[Table]:
    return [table for table in tables if not parts or table.part is None or table.part in parts]


def _not_there(tables: list[Table], misfits: list[Table], parts: set[str], layout: Format) -> VLMError:
    """Return the error for wanted parts of which there is no table."""
    found = ", ".join(sorted({table.part for table in tables}))
    if misfits:
        return VLMError(
            "invalid_request",
            f"{_has(misfits[0])}; expected {', '.join(layout.columns):.120}; mend it, or ask for another part of "
            f"{found:.80}",
        )
    wanted = ", ".join(sorted(parts))
    return VLMError("invalid_request", f"the data has only {found:.80}; expected {wanted:.80}; choose what there is")
