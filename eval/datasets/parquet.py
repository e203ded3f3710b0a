"""Parquet files as Hugging Face's data sets come: pictures lie inside, as `{"bytes", "path"}` or plain bytes.

Files are read a few rows at a time, only the columns that a task wants. Pictures are hashed as they pass and not kept:
a sample holds where its picture lies, and reads it from there.

Parquet is decoded a page at a time and no less. pyarrow puts 1,024 values into a page before it looks at its size, so
that in a file of its making a row group of fewer rows is one page: reading needs about two and a half times the
group's own bytes (160 MB of pictures in one group: 400 MB; in groups of 100 rows, as Hugging Face writes: 150 MB).
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.datasets.pictures import LFS_POINTER, Picture, content_problem, digest, picture_at
from eval.datasets.row import Row, damaged
from eval.datasets.table import Table, part_of
from eval.records import ImageRef
from vlm.errors import VLMError
from vlm.packages import needed

_ROWS_AT_ONCE = 32
_PICTURES_AT_ONCE = 16


def parquet_table(path: Path) -> Table:
    """Return the table of a parquet file. Raises: VLMError when it is damaged or pyarrow is not installed."""
    with _open(path) as file:
        columns = tuple(file.schema_arrow.names)
    return Table(
        kind="parquet", path=path, columns=columns, part=part_of(path), read=lambda wanted: _rows(path, wanted)
    )


def _open(path: Path):
    pa, pq = (needed(name, f"{path.name:.60}") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        # Without pre_buffer and with a buffer, a row group's pages come one by one and not all at once.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        # All names are decoded here, so that a damaged one is found now.
        file.schema_arrow.to_string()
        return file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, _why_unreadable(path, error)) from None


def _unreadable(path: Path, why: str) -> VLMError:
    return VLMError("invalid_request", f"{path.name:.60}: {why}; fetch it again")


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(64)
            file.seek(-4, 2)
            tail = file.read()
    except OSError:
        return f"it cannot be read ({getattr(error, 'strerror', None) or 'too short for a parquet file'})"
    if head.startswith(LFS_POINTER):
        return "it is a pointer of Git LFS and not the file itself (`git lfs pull` fetches that)"
    if not head.startswith(b"PAR1"):
        return "it is no parquet file"
    return "it is cut off, its end is missing" if tail != b"PAR1" else "its footer is damaged"


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    file = _open(path)
    try:
        schema = file.schema_arrow
        names = [name for name in schema.names if name in wanted]
        pictures = {name: _Cells(path, name) for name in names if _holds_pictures(schema.field(name).type)}
        part, number = part_of(path), 0
        for group in range(file.num_row_groups):
            start = number
            for batch in _batches(file, path, group, names, _ROWS_AT_ONCE, number):
                plain = {name: _plain(batch.column(name), path, name, number) for name in names if name not in pictures}
                for place in range(batch.num_rows):
                    number += 1
                    yield Row(
                        file=path,
                        number=number,
                        values={name: values[place] for name, values in plain.items()},
                        pictures={
                            name: cells.pictures(batch.column(name), place, group, number - 1 - start, number)
                            for name, cells in pictures.items()
                        },
                        part=part,
                    )
    finally:
        file.close()


def _batches(file, path: Path, group: int, names: Sequence[str], rows: int, number: int):
    """Yield a row group a few rows at a time; `number` rows came before it."""
    import pyarrow as pa

    batches = file.iter_batches(batch_size=rows, row_groups=[group], columns=list(names), use_threads=False)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (pa.ArrowException, OSError):
            column = _damaged_column(file, group, names) if len(names) > 1 else names[0]
            raise damaged(path, number + 1, column, "a damaged page", "a whole file", "fetch it again") from None
        number += batch.num_rows
        yield batch


def _plain(column, path: Path, name: str, number: int) -> list:
    """Return the values of a column of a batch; `number` rows came before it."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        values = []
        for cell in column:
            try:
                values.append(cell.as_py())
            except UnicodeDecodeError:
                number += len(values) + 1
                raise damaged(path, number, name, "bytes that are no UTF-8", "text in UTF-8") from None
        return values


def _damaged_column(file, group: int, names: Sequence[str]) -> str:
    import pyarrow as pa

    for name in names:
        try:
            for _ in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=[name]):
                pass
        except (pa.ArrowException, OSError):
            return name
    return ", ".join(names)


def _holds_pictures(kind) -> bool:
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class _Cells:
    """The pictures of one column. Reading them in their order is as cheap as reading the file once."""

    def __init__(self, path: Path, column: str):
        self.path, self.column = path, column
        self._lock = threading.Lock()
        self._file = None
        self._close()

    def __reduce__(self):
        # Sent to another process, it opens the file there.
        return type(self), (self.path, self.column)

    def pictures(self, array, place: int, group: int, index: int, number: int) -> tuple[Picture, ...]:
        """Return the pictures of one row of a batch; `index` counts within the row group, `number` in the file."""
        where = f"row {number} of {self.path.name}"
        found = []
        for item, (content, name) in enumerate(_contents(array[place])):
            if content is None and name:
                found.append(picture_at(self.path.parent, name))
            elif content is None:
                found.append(Picture(None, f"{where} has no image in column {self.column!r}"))
            else:
                key = digest(content)
                ref = ImageRef(id=key, load=_Cell(self, group, index, item, key), digest=key)
                found.append(Picture(ref, content_problem(content, where)))
        return tuple(found)

    def read(self, group: int, index: int, item: int) -> bytes:
        """Return the content of one picture."""
        with self._lock:
            if self._group != group or index < self._start:
                self._close()
                self._file = _open(self.path)
                self._group = group
                self._batches = _batches(self._file, self.path, group, [self.column], _PICTURES_AT_ONCE, 0)
            while index >= self._start + self._size:
                self._start += self._size
                self._array = next(self._batches).column(0)
                self._size = len(self._array)
            return bytes(_contents(self._array[index - self._start])[item][0])

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._batches = self._array = self._group = None
        self._start = self._size = 0


@dataclass(frozen=True, slots=True)
class _Cell:
    """One picture of a column, to be called for its bytes."""

    cells: _Cells
    group: int
    index: int
    item: int
    digest: str

    def __call__(self) -> bytes:
        try:
            content = self.cells.read(self.group, self.index, self.item)
        except (StopIteration, IndexError, TypeError):
            content = b""
        if digest(content) != self.digest:
            raise VLMError(
                "invalid_request",
                f"{self.cells.path.name:.60} has changed while it was in use; expected the file as it was; start again",
            )
        return content


def _contents(cell) -> list[tuple[memoryview | None, str | None]]:
    """Return the (content, name) pairs of a cell, or of each element of a list; content is not copied."""
    import pyarrow as pa

    if not cell.is_valid:
        # A null picture is said to be missing, a null list of pictures has none.
        return [] if isinstance(cell, pa.ListScalar | pa.LargeListScalar) else [(None, None)]
    if isinstance(cell, pa.ListScalar | pa.LargeListScalar):
        return [pair for element in cell.values for pair in _contents(element)]
    if not isinstance(cell, pa.StructScalar):
        return [(memoryview(cell.as_buffer()), None)]
    content = cell["bytes"]
    if content.is_valid:
        return [(memoryview(content.as_buffer()), None)]
    name = cell["path"].as_buffer() if "path" in cell.keys() else None  # noqa: SIM118 (a scalar is no dict)
    return [(None, bytes(name).decode("utf-8", "replace") if name else None)]
