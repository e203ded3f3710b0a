"""Parquet files: rows are read a row group at a time, and only a few groups are held in memory."""

from collections import OrderedDict
from pathlib import Path

import numpy as np

from vlm.errors import VLMError
from vlm.packages import needed
from vlm.training.data.stored import Groups

MAX_GROUPS, MAX_BYTES = 8, 256 * 2**20
"""What a process holds at most, but one group at least."""


class ParquetRows:
    """The rows of one or several parquet files, as JSON lines would say them.

    An image in Hugging Face's form, `{"bytes": …, "path": …}`, becomes its bytes or, without these, its path.
    Source: datasets, features/image.py, `Image.pa_type`.
    """

    def __init__(self, paths: list[Path], title: str):
        self.paths, self.title = paths, title
        self._origins: list[tuple[int, int]] = []
        """For each group its file and its number there."""
        sizes, largest = [], 1
        for number, path in enumerate(paths):
            metadata = _guarded(path, lambda parquet: parquet.metadata)
            for group in range(metadata.num_row_groups):
                self._origins.append((number, group))
                sizes.append(metadata.row_group(group).num_rows)
                largest = max(largest, metadata.row_group(group).total_byte_size)
        self.groups = Groups(np.array(sizes, dtype=np.int64), max(1, min(MAX_GROUPS, MAX_BYTES // largest)))
        self._ends = self.groups.sizes.cumsum()
        self._held: OrderedDict = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, place: int) -> str:
        group, _ = self._find(place)
        file, number = self._origins[group]
        first = int(self._ends[group - number] - self.groups.sizes[group - number])
        return f"{self.paths[file].name}[{place - first}]"

    def __getitem__(self, place: int) -> object:
        group, inside = self._find(place)
        try:
            (row,) = self._group(group).slice(inside, 1).to_pylist()
        except UnicodeDecodeError:
            raise VLMError("invalid_request", "the row holds text that is no UTF-8; write the file again") from None
        return _plain(row)

    def _find(self, place: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._ends, place, side="right"))
        return group, place - int(self._ends[group] - self.groups.sizes[group])

    def _group(self, group: int):
        """Return the table of a group, from memory if it is there; the one unused for longest makes room."""
        if group not in self._held:
            while len(self._held) >= self.groups.at_once:
                self._held.popitem(last=False)
            file, number = self._origins[group]
            self._held[group] = _guarded(
                self.paths[file], lambda parquet: parquet.read_row_group(number, use_threads=False)
            )
        self._held.move_to_end(group)
        return self._held[group]


def _guarded(path: Path, use):
    """Return what `use` makes of an opened file. Files are opened anew each time, so that processes share none."""
    pyarrow, parquet = needed("pyarrow", "a parquet file"), needed("pyarrow.parquet", "a parquet file")
    try:
        with parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            return use(file)
    except (pyarrow.ArrowException, OSError) as error:
        why = getattr(error, "strerror", None) or "it is damaged, or no parquet file"
        raise VLMError("invalid_request", f"{path.name!s:.60} cannot be read: {why}; fetch it again") from None


def _plain(value: object) -> object:
    """Return a value without the nulls that a table has for every key that a row does not use."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"bytes", "path"}:
        return value["bytes"] or value["path"]
    found = {name: _plain(one) for name, one in value.items()}
    return {name: one for name, one in found.items() if one is not None}
