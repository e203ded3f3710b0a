"""From a folder to the samples of a task: which format it is, which parts and variants are meant, and their names."""

import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from eval.datasets import check_whole, contents, find_tables
from eval.datasets.pictures import digest
from eval.datasets.row import Row
from eval.datasets.table import Table, part_named
from eval.records import Sample
from eval.tasks.sample_names import SampleNames
from eval.tasks.task import Format, Task
from vlm.errors import VLMError, shown

logger = logging.getLogger(__name__)


def load(task: Task, path: Path, split: str | None, variant: str | None, limit: int | None) -> Iterator[Sample]:
    """See `Task.load`."""
    if variant is not None and variant not in task.variants:
        raise task.refusal("variant", variant, task.variants)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise VLMError("invalid_request", f"limit is {shown(limit)}; expected a whole number from 1; give one")
    parts, halves = _wanted(task, split)
    try:
        path = _own_folder(task, path)
        layout, tables = _recognise(task, path)
    except OSError as error:
        raise _unreadable(path, error) from None
    parts = parts or _default_parts(task, tables)
    tables = _of_parts(tables, parts)
    for table in tables:
        if table.error is not None:
            raise table.error
    if path.is_dir():
        check_whole(tables)
    return itertools.islice(_Selection(task, layout, parts, halves, variant).samples(tables), limit)


def _own_folder(task: Task, path: Path) -> Path:
    """Return the folder in `path` that is called as the task is, for one path may hold the data of several tasks."""
    if not path.is_dir():
        return path
    # Beside the table there may be a hundred thousand pictures: no Path is made of those.
    own = [path / name for name in sorted(name for name in os.listdir(path) if name.lower() == task.name)]
    return next((each for each in own if each.is_dir()), path)


def _wanted(task: Task, split: str | None) -> tuple[set[str], set[str]]:
    """Return the parts and the halves that `split` names."""
    parts, halves = set(), set()
    if not isinstance(split, str | None):
        raise task.refusal("split", split, (*task.halves, "train", "validation", "test", "..."))
    for word in filter(None, (word.strip().lower() for word in (split or "").split(","))):
        if word in task.halves:
            halves.add(word)
        elif word == "both" and task.halves:
            halves.update(task.halves)
        elif part := part_named(word):
            parts.add(part)
        else:
            raise task.refusal("split", word, (*task.halves, "train", "validation", "test", "..."))
    return parts, halves


def _recognise(task: Task, path: Path) -> tuple[Format, list[Table]]:
    """Return the one format of the task that lies at `path`, with its tables."""
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
    number, tables = fitting.popitem()
    layout = task.formats[number]
    if layout.kind == "tsv" and len(tables) > 1:
        tables = [table for table in tables if re.match(task.tsv_names, table.path.name, re.IGNORECASE)] or tables
    return layout, tables + [table for table in broken if table.kind == layout.kind]


def _unrecognised(task: Task, path: Path, tables: list[Table]) -> VLMError:
    found = contents(path)
    expected = "as " + ", ".join(dict.fromkeys(layout.said for layout in task.formats))
    if tables and not tables[0].columns:
        found = f"{tables[0].path.name:.60} is empty"
    elif tables:
        names = ", ".join(tables[0].columns)
        found = f"{tables[0].path.name:.40} has the columns {names:.60}" + ("…" if len(names) > 60 else "")
        wanted = [", ".join(layout.columns) for layout in task.formats if layout.kind == tables[0].kind]
        expected = f"with {' or '.join(wanted):.120}"
    columns = "; ".join(f"{layout.kind} {', '.join(layout.columns)}" for layout in task.formats)
    fix = f"give that folder or file, see vlm-eval list: {columns}"
    return VLMError("invalid_request", f"{found}; expected {task.title} {expected}; {fix}")


def _default_parts(task: Task, tables: list[Table]) -> set[str]:
    """Return the only part, or of several the one that the task is scored on."""
    found = {table.part for table in tables if table.part}
    if len(found) == 1:
        return found
    if found and task.part not in found:
        raise VLMError(
            "invalid_request",
            f"the data has the parts {', '.join(sorted(found))} and not {task.part}, which {task.title} is scored on; "
            f"say which is meant, for example split={min(found)!r}",
        )
    return {task.part} if task.part else set()


def _of_parts(tables: list[Table], parts: set[str]) -> list[Table]:
    chosen = [table for table in tables if not parts or table.part is None or table.part in parts]
    if not chosen:
        found = ", ".join(sorted({table.part for table in tables}))
        wanted = ", ".join(sorted(parts))
        raise VLMError("invalid_request", f"the data has only {found:.80}; expected {wanted:.80}; choose what there is")
    return chosen


class _RowOfNoUse(Exception):
    """A row that stands by itself is the problem of its own sample."""

    def __init__(self, error: VLMError):
        super().__init__(error.message)
        self.error = error


@dataclass
class _Selection:
    """Which samples are meant, and which of the data were passed over."""

    task: Task
    layout: Format
    parts: set[str]
    halves: set[str]
    variant: str | None

    def __post_init__(self):
        self._asked = self.variant is not None
        self._say_so: set[bool] = set()
        self._passed_over: set[str] = set()
        self._first_problem: VLMError | None = None
        self._names = SampleNames(by_half=bool(self.task.halves))

    def samples(self, tables: list[Table]) -> Iterator[Sample]:
        """Yield what is wanted. Raises: VLMError when that is nothing."""
        is_empty = True
        for table in tables:
            for row in _rows(table, (*self.layout.columns, *self.layout.more)):
                try:
                    for sample in self._of_row(row):
                        is_empty = False
                        yield self._names.named(sample, row)
                except _RowOfNoUse as row_problem:
                    self._first_problem = self._first_problem or row_problem.error
                    yield self._of_no_use(row, row_problem.error)
        if is_empty and self._first_problem:
            raise self._first_problem
        if is_empty:
            wanted = ", ".join(sorted(self.parts | self.halves | {self.variant or ""} - {""})) or "a question"
            found = f"only {', '.join(sorted(self._passed_over))}" if self._passed_over else "no row"
            raise VLMError(
                "invalid_request",
                f"{tables[0].path.name:.60} has {found}; expected {wanted:.80}; choose what there is",
            )

    def _of_row(self, row: Row) -> Iterator[Sample]:
        if row.part and self.parts and row.part not in self.parts:
            self._passed_over.add(row.part)
            return
        for sample in self._understood(row):
            if self.task.variants:
                sample = self._with_variant(sample, row)
            if self.task.variants and sample.fields["variant"] != self.variant:
                self._passed_over.add(str(sample.fields["variant"]))
            elif self.halves and sample.fields.get("split") not in self.halves:
                self._passed_over.add(str(sample.fields.get("split")))
            else:
                yield sample

    def _understood(self, row: Row) -> Iterable[Sample]:
        """Return the samples of a row. Raises: _RowOfNoUse where rows stand by themselves, else VLMError."""
        try:
            if row.problem is not None:
                raise row.problem
            return list(self.layout.samples(row)) if row.line else self.layout.samples(row)
        except VLMError as error:
            if not row.line:
                raise
            raise _RowOfNoUse(error) from None

    def _of_no_use(self, row: Row, error: VLMError) -> Sample:
        """Return the sample of a row that only says what is wrong with it."""
        fields = {"variant": self.variant} if self.task.variants and self.variant else {}
        given, problem = row.values.get("id"), error.message
        sample = Sample(id="", task=self.task.name, images=(), question="", targets=(), fields=fields, problem=problem)
        if isinstance(given, str) and given:
            return self._names.named(replace(sample, id=given), row)
        return replace(sample, id=self._names.unused(f"line-{digest(row.line)}"))

    def _with_variant(self, sample: Sample, row: Row) -> Sample:
        """Return the sample with its variant; the first one decides where none was asked for."""
        says_so = "variant" in sample.fields
        found = sample.fields["variant"] if says_so else self._assumed(row)
        if found not in self.task.variants:
            raise row.damaged("variant", shown(found), f"one of {', '.join(self.task.variants)}")
        self._say_so.add(says_so)
        if self._asked and len(self._say_so) == 2:
            raise VLMError(
                "invalid_request",
                f"{row.file.name:.60}, row {row.number}: some rows say their variant and some do not; expected all or "
                "none; give one file or folder",
            )
        self.variant = self.variant or self.layout.default_variant or found
        if found != self.variant and not self._asked and self.layout.default_variant is None:
            raise VLMError(
                "invalid_request",
                f"{row.file.name:.60}, row {row.number}, is {found} and what came before is {self.variant}; expected "
                f"one variant, for their scores differ; ask for one, as in variant={found!r}",
            )
        return sample if says_so else replace(sample, fields={**sample.fields, "variant": found})

    def _assumed(self, row: Row) -> str:
        """Return what a row is that does not say its variant: what was asked for, or what such data usually is."""
        found = self.variant if self._asked else self.layout.assumed_variant
        if found is None:
            raise row.damaged("variant", "nothing", f"one of {', '.join(self.task.variants)}, here or as variant=...")
        if not self._asked and False not in self._say_so:
            logger.warning("%s does not say which variant it is; taken as %s", row.file.name, found)
        return found


def _rows(table: Table, columns: tuple[str, ...]) -> Iterator[Row]:
    try:
        yield from table.read(columns)
    except OSError as error:
        raise _unreadable(table.path, error) from None


def _unreadable(path: Path, error: OSError) -> VLMError:
    return VLMError(
        "invalid_request", f"{path.name:.80} cannot be read ({error.strerror}); expected data there; check the path"
    )
