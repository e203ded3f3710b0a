"""One row of somebody's table of questions: its columns by type, with errors that name file, row and column."""

import ast
import math
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from eval.datasets.pictures import Picture
from eval.records import Field
from vlm.errors import VLMError, shown

MAX_FIELD_CHARS = 200


class Row(Struct, frozen=True, kw_only=True):
    """What a table says in one row, not yet understood by a task."""

    file: Path
    number: int
    """Counted from 1, without a header."""
    values: Mapping[str, object]
    """Everything but the pictures, as the format gives it."""
    pictures: Mapping[str, tuple[Picture, ...]] = {}
    """The pictures of each column that holds some."""
    part: str | None = None
    """"train", "validation", "test", ... as the name of the file or the row itself says."""
    line: bytes = b""
    """The row as it was written, in a format whose rows stand by themselves: should it be of no use, only its sample is
    an error. b"" in a file that is whole or damaged."""
    problem: VLMError | None = None
    """Why nothing in the row can be read."""

    def damaged(self, column: str, found: str, expected: str) -> VLMError:
        """Return the error that says what is wrong with a column here."""
        return damaged(self.file, self.number, column, found, expected)

    def text(self, column: str) -> str:
        """Return a text that must be there; a number is written out, but for NaN, which stands for nothing."""
        value = self.values.get(column)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int | float) and value == value:
            return str(value)
        raise self.damaged(column, _found(value), "a text")

    def texts(self, column: str, key: str | None = None) -> tuple[str, ...]:
        """Return a list of texts, which may be written out as Python writes it ("['a', 'b']"); () for none.

        key: the elements are records, and this field of theirs is meant.
        """
        value = self.values.get(column)
        if isinstance(value, str):
            value = self._written_list(column, value)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise self.damaged(column, _found(value), "a list of texts")
        texts = [each.get(key) if key and isinstance(each, Mapping) else each for each in value]
        for each in texts:
            if not isinstance(each, str | int | float):
                raise self.damaged(column, f"a list with {_found(each)}", f"a list of {key or 'text'}s")
        return tuple(str(each) for each in texts)

    def integer(self, column: str) -> int:
        """Return a whole number that must be there, also one written as a text or with ".0"."""
        value = self.values.get(column)
        try:
            number = int(value) if isinstance(value, int) else float(value)
            if number == int(number):
                return int(number)
        except (ValueError, TypeError, OverflowError):
            pass
        raise self.damaged(column, _found(value), "a whole number")

    def field(self, column: str) -> Field:
        """Return a value to group by, or None for what is absent, no single value, or too long for a label."""
        value = self.values.get(column)
        if isinstance(value, str):
            return value if 0 < len(value) <= MAX_FIELD_CHARS else None
        if isinstance(value, float) and value.is_integer():
            # What pandas and parquet make of whole numbers in a column with gaps.
            return int(value)
        is_finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        return value if is_finite else None

    def fields(self, *columns: str) -> dict[str, Field]:
        """Return those of `columns` that have a value to group by."""
        return {column: value for column in columns if (value := self.field(column)) is not None}

    def images(self, *columns: str) -> tuple[Picture, ...]:
        """Return the pictures of the first of `columns` that has some; one that says so where there are none."""
        for column in columns:
            if self.pictures.get(column):
                return self.pictures[column]
        return (Picture(ref=None, problem=f"row {self.number} of {self.file.name} has no image"),)

    def _written_list(self, column: str, value: str) -> object:
        if not value:
            return None
        if not (value.startswith("[") and value.endswith("]")):
            return [value]
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise self.damaged(column, shown(value), "a list written as Python writes it") from None


def damaged(
    file: Path, number: int, column: str, found: str, expected: str, fix: str = "mend the row or take it out"
) -> VLMError:
    """Return the error for one place of a table."""
    place = f"{file.name:.60}, row {number}, column {column[:40]!r}"
    return VLMError("invalid_request", f"{place}: found {found}; expected {expected}; {fix}")


def a_kind(value: object) -> str:
    """Return the type of a value with its article, as in "an int"."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _found(value: object) -> str:
    if value is None or value == "" or value != value:
        return "nothing"
    return shown(value) if isinstance(value, str | int | float) else a_kind(value)
