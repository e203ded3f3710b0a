"""The log of a run: one line a sample, only ever appended to; everything else is derived from it.

A record is on the disk before the next is asked for, and a record that was cut short by a crash is cut off whole when
the log is opened again: left there, the next record would be glued to it and lost.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from eval.records import Prediction
from vlm.errors import VLMError

_BLOCK_BYTES = 2**16
Record = TypeVar("Record")


class Journal:
    """The journal of one process, open for appending. Whoever opens it holds its lock."""

    def __init__(self, path: Path):
        """Open `path`, making it where there is none and cutting off a torn last record."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._refused(error) from None
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise VLMError(
                    "invalid_request", f"{path.name} is no regular file; expected one; move it away and run again"
                )
            self._num_bytes = _cut_torn_tail(self._descriptor)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def append(self, record: Prediction) -> None:
        """Write `record` in one piece and wait until it is on the disk.

        Raises: VLMError where it cannot be written; the journal then ends with the record before.
        """
        line = record.to_json().encode("ascii") + b"\n"
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._num_bytes)
            raise self._refused(error) from None
        self._num_bytes += len(line)

    def _refused(self, error: OSError) -> VLMError:
        return VLMError(
            "invalid_request",
            f"{self.path.name} cannot be written ({error.strerror}); the answers before are safe; free some space or "
            "check the permissions, then run the same command again",
        )


class RecordHead(msgspec.Struct, frozen=True):
    """What tells a record's sample, and whether it was answered."""

    task: str
    id: str
    key: str
    error: str | None

    @classmethod
    def from_json(cls, line: bytes) -> "RecordHead":
        """Return the head of the record that a line holds. Raises: VLMError (invalid_request) for any other line."""
        try:
            if line.isascii():  # as we write them; of what it skips, msgspec would not look whether it is UTF-8
                return msgspec.json.decode(line, type=cls)
        except msgspec.MsgspecError:
            pass
        whole = Prediction.from_json(line)  # which says what is wrong
        return cls(whole.task, whole.id, whole.key, whole.error)


def read_journal(path: Path, parse: Callable[[bytes], Record] = Prediction.from_json) -> Iterator[Record]:
    """Yield the records of one journal; what stands after the last newline is still being written, or torn.

    Raises: VLMError naming the line that holds no record, and where the file cannot be read.
    """
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield parse(line)
            except VLMError as error:
                raise VLMError(error.code, f"{path.name}, line {number}: {error.message}") from None


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise VLMError(
            "invalid_request",
            f"{path.name} cannot be read ({error.strerror}); expected a run's answers; check the permissions",
        ) from None


def read_journals(paths: Iterable[Path]) -> Iterator[Prediction]:
    """Yield one record a sample out of several journals: an answer before an error, a later one before an earlier."""
    paths = list(paths)
    places: dict[tuple[str, str], tuple[bool, int]] = {}
    for place, record in enumerate(_all(paths)):
        name, rank = (record.task, record.id), (record.error is None, place)
        places[name] = max(places.get(name, rank), rank)
    chosen = {place for _, place in places.values()}
    for place, record in enumerate(_all(paths)):
        if place in chosen:
            yield record


def _all(paths: list[Path]) -> Iterator[Prediction]:
    for path in paths:
        yield from read_journal(path)


def _cut_torn_tail(descriptor: int) -> int:
    """Cut the file back to its last newline and return how many bytes are left."""
    size = end = os.fstat(descriptor).st_size
    keep = 0
    while end:
        start = max(0, end - _BLOCK_BYTES)
        place = os.pread(descriptor, end - start, start).rfind(b"\n")
        if place >= 0:
            keep = start + place + 1
            break
        end = start
    if keep < size:
        os.ftruncate(descriptor, keep)
        os.fsync(descriptor)
    return keep
