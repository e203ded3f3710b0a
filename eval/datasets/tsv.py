"""VLMEvalKit's TSV files: pictures in base64, or given by the index of another row, or as paths.

One row is read at a time; where a picture lies in the file is kept and not the picture. The file is read as pandas
writes it: a field that begins with a double quote goes on, tabs and newlines included, to the next single one.

Source: VLMEvalKit, vlmeval/dataset/image_base.py (ImageBaseDataset): an `image` of at most 64 characters is the index
of the row that has the picture; a text in square brackets is a list of pictures.
"""

import ast
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from eval.datasets.pictures import Picture, content_problem, digest, picture_at
from eval.datasets.row import Row, damaged
from eval.datasets.table import Table, part_named, part_of
from eval.records import ImageRef
from vlm.errors import VLMError

_MAX_REFERENCE_CHARS = 64
_MAX_LINES = 1_000
"""Of one row; more means that a quote was never closed."""


def tsv_table(path: Path) -> Table:
    """Return the table of a TSV file. Raises: VLMError when its first line cannot be read."""
    return Table(
        kind="tsv",
        path=path,
        columns=tuple(_Reader(path).columns),
        part=part_of(path),
        read=lambda wanted: _rows(path),
    )


class _Record(NamedTuple):
    offset: int
    number: int
    fields: list[bytes]


class _Reader:
    """Splits a file into records of as many fields as there are columns."""

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []
        with self.path.open("rb") as file:
            header = next(self._split(file, 0), None)
            self._body = file.tell()
        if header:
            names = [self.decode(0, str(place), name) for place, name in enumerate(header.fields, start=1)]
            self.columns = [name.removeprefix("\ufeff") for name in names]

    def records(self) -> Iterator[_Record]:
        """Yield the rows in their order."""
        with self.path.open("rb") as file:
            file.seek(self._body)
            for record in self._split(file, 1):
                if len(record.fields) != len(self.columns):
                    column = self.columns[min(len(record.fields), len(self.columns) - 1)]
                    found = f"{len(record.fields)} fields in the row"
                    raise damaged(self.path, record.number, column, found, f"{len(self.columns)}, with tabs between")
                yield record

    def field_at(self, offset: int, column: int) -> bytes:
        """Return one field of the row that begins at `offset`."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return next(self._split(file, 1)).fields[column]

    def decode(self, number: int, column: str, field: bytes) -> str:
        """Return a field as text."""
        try:
            return field.decode()
        except UnicodeDecodeError:
            raise damaged(self.path, number, column, "bytes that are no UTF-8", "text in UTF-8") from None

    def _split(self, file: BinaryIO, number: int) -> Iterator[_Record]:
        while True:
            offset, line = file.tell(), file.readline()
            if not line:
                return
            if line.isspace():
                continue
            fields, num_lines = _fields(line), 1
            while fields is None:
                more = file.readline()
                num_lines += 1
                if not more or num_lines > _MAX_LINES:
                    column = self.columns[0] if self.columns else "header"
                    raise damaged(self.path, number, column, "a quote that is never closed", "pairs of quotes")
                line += more
                # Only a line with a quote in it can close one.
                fields = _fields(line) if b'"' in more else None
            yield _Record(offset, number, fields)
            number += 1


def _fields(line: bytes) -> list[bytes] | None:
    """Return the fields of a row, or None when a quote is open at its end."""
    if b'"' not in line:
        return line.rstrip(b"\r\n").split(b"\t")
    fields, place, end = [], 0, len(line.rstrip(b"\r\n"))
    while place <= end:
        content = b""
        if line[place : place + 1] == b'"':
            close = line.find(b'"', place + 1)
            while close >= 0 and line[close + 1 : close + 2] == b'"':
                close = line.find(b'"', close + 2)
            if close < 0:
                return None
            content, place = line[place + 1 : close].replace(b'""', b'"'), close + 1
        stop = line.find(b"\t", place, end)
        stop = end if stop < 0 else stop
        fields.append(content + line[place:stop])
        place = stop + 1
    return fields


def _rows(path: Path) -> Iterator[Row]:
    reader = _Reader(path)
    pictures = _Pictures(reader)
    part = part_of(path)
    for record in reader.records():
        values = {
            column: reader.decode(record.number, column, field) or None
            for column, field in zip(reader.columns, record.fields, strict=True)
            if column != "image"
        }
        yield Row(
            file=path,
            number=record.number,
            values=values,
            pictures={"image": pictures.of(record, values)},
            part=part or part_named(values.get("split") or ""),
        )


class _Pictures:
    """The pictures of each row, also of those that name another row for theirs."""

    def __init__(self, reader: _Reader):
        self._reader = reader
        self._image = reader.columns.index("image") if "image" in reader.columns else None
        self._index = reader.columns.index("index") if "index" in reader.columns else None
        self._known: dict[bytes, tuple[Picture, ...]] = {}
        self._later: Iterator[_Record] | None = None

    def of(self, record: _Record, values: dict) -> tuple[Picture, ...]:
        """Return the pictures of a row."""
        field = record.fields[self._image] if self._image is not None else b""
        if not field:
            names = Row(file=self._reader.path, number=record.number, values=values).texts("image_path")
            return tuple(picture_at(self._reader.path.parent, name) for name in names)
        if len(field) > _MAX_REFERENCE_CHARS:
            return self._own(record)
        if field not in self._known:
            self._look_for(field)
        if field in self._known:
            return self._known[field]
        where = f"row {record.number} of {self._reader.path.name}"
        return (Picture(None, f"{where} takes its image from row {_shown(field)}, which has none"),)

    def _look_for(self, index: bytes) -> None:
        """Read on, apart from the rows that are being given out, until the row with this index has come."""
        if self._later is None:
            self._later = self._reader.records()
        for record in self._later:
            if self._index is not None and len(record.fields[self._image]) > _MAX_REFERENCE_CHARS:
                self._own(record)
                if record.fields[self._index] == index:
                    return

    def _own(self, record: _Record) -> tuple[Picture, ...]:
        index = record.fields[self._index] if self._index is not None else b""
        if index in self._known:
            return self._known[index]
        where = f"row {record.number} of {self._reader.path.name}"
        pictures = []
        for item, content in enumerate(_decoded(record.fields[self._image])):
            if content is None:
                pictures.append(Picture(None, f"{where} has an image that is no base64"))
                continue
            load = _Cell(self._reader.path, record.offset, self._image, item, digest(content))
            pictures.append(
                Picture(ImageRef(id=load.digest, load=load, digest=load.digest), content_problem(content, where))
            )
        if index:
            self._known[index] = tuple(pictures)
        return tuple(pictures)


def _decoded(field: bytes) -> list[bytes | None]:
    """Return the pictures of a field, None for each that is no base64."""
    texts = [field]
    if field.startswith(b"[") and field.endswith(b"]"):
        try:
            texts = [str(text).encode() for text in ast.literal_eval(field.decode("ascii"))]
        except (ValueError, SyntaxError, TypeError, MemoryError):
            return [None]
    return [_decode(text) for text in texts]


def _decode(text: bytes) -> bytes | None:
    if text.startswith(b"data:"):
        text = text.partition(b",")[2]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return None


def _shown(field: bytes) -> str:
    return repr(field.decode("utf-8", "replace")[:40])


@dataclass(frozen=True, slots=True)
class _Cell:
    """One picture of the file, to be called for its bytes."""

    path: Path
    offset: int
    column: int
    item: int
    digest: str

    def __call__(self) -> bytes:
        try:
            content = _decoded(_Reader(self.path).field_at(self.offset, self.column))[self.item] or b""
        except (OSError, StopIteration, IndexError):
            content = b""
        if digest(content) != self.digest:
            raise VLMError(
                "invalid_request",
                f"{self.path.name:.60} has changed while it was in use; expected the file as it was; start again",
            )
        return content
