"""From a folder to the samples of a task: which halves and variants are meant, and what a row of no use becomes."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from eval.datasets.pictures import digest
from eval.datasets.row import Row
from eval.datasets.table import Table, part_named
from eval.records import Sample
from eval.tasks.recognition import recognise
from eval.tasks.sample_names import SampleNames
from eval.tasks.samples import given_id
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
        layout, tables, parts = recognise(task, path, parts)
    except OSError as error:
        raise _unreadable(path, error) from None
    return itertools.islice(_Selection(task, layout, parts, halves, variant).samples(tables), limit)


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
        problem = error.message
        sample = Sample(id="", task=self.task.name, images=(), question="", targets=(), fields=fields, problem=problem)
        with suppress(VLMError):
            sample = replace(sample, id=given_id(row))
        if sample.id:
            return self._names.named(sample, row)
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
