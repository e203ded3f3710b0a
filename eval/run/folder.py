"""The folder of a run: the names of its files, its locks, and how a file in it is replaced as a whole."""

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eval.run.shards import Shard
from vlm.errors import VLMError

MANIFEST, SCORES, REPORT = "manifest.json", "scores.json", "report.html"
_JOURNAL = re.compile(r"predictions(-\d+-of-\d+)?\.jsonl")


class RunFolder:
    """What lies in the folder of a run, by name."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def create(self) -> None:
        """Make the folder where there is none yet."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VLMError(
                "invalid_request",
                f"the folder {self.path.name!r:.80} cannot be made ({error.strerror}); give one that may be written to",
            ) from None

    def journal_path(self, shard: Shard | None) -> Path:
        """Return where the process that answers `shard`, or everything for None, writes its answers."""
        return self.path / (
            "predictions.jsonl" if shard is None else f"predictions-{shard.index}-of-{shard.count}.jsonl"
        )

    def journals(self) -> list[Path]:
        """Return the journals of all processes, in a fixed order."""
        try:
            return sorted(self.path / name for name in os.listdir(self.path) if _JOURNAL.fullmatch(name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise VLMError(
                "invalid_request",
                f"the folder {self.path.name!r:.80} cannot be read ({error.strerror}); expected a run's; give another",
            ) from None

    def manifest(self) -> dict | None:
        """Return the manifest, None where there is none yet."""
        return self._read_json(MANIFEST)

    def scores(self) -> dict | None:
        """Return what was scored last, None where nothing was."""
        return self._read_json(SCORES)

    def write_json(self, name: str, value: dict) -> None:
        """Replace the file `name` in one step."""
        replace_file(self.path / name, json.dumps(value, indent=1, allow_nan=False) + "\n")

    @contextmanager
    def claimed(self, shard: Shard | None) -> Iterator[None]:
        """Be the only process that answers `shard`, or refuse at once."""
        with lock(self.journal_path(shard).with_suffix(".lock")):
            yield

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Be the only process that changes the manifest or the scores; waits for others."""
        with lock(self.path / "manifest.lock", wait=True):
            yield

    def move_aside(self, names: list[str]) -> Path | None:
        """Move the files `names` into a new folder inside this one and return it, None when there are none."""
        found = [name for name in names if (self.path / name).exists()]
        if not found:
            return None
        aside = self._new_folder(time.strftime("earlier-%Y%m%d-%H%M%S", time.gmtime()))
        # The manifest goes first: without it nothing that is left can be taken for a run's answers and gone on with.
        for name in sorted(found, key=lambda name: name != MANIFEST):
            os.rename(self.path / name, aside / name)
        _flush_folder(self.path)
        return aside

    def _new_folder(self, name: str) -> Path:
        for count in range(1000):
            path = self.path / (f"{name}-{count}" if count else name)
            with suppress(FileExistsError):
                path.mkdir()
                return path
        raise VLMError("invalid_request", "a thousand earlier runs were moved aside this second; try again")

    def _read_json(self, name: str) -> dict | None:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            value = None
        if not isinstance(value, dict):
            raise VLMError(
                "invalid_request", f"{name} of {self.path.name!r:.80} is damaged; expected a JSON object; move it away"
            )
        return value


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`. The kernel lets go of it with the process, however that ends.

    Raises: VLMError where another process holds it, unless this is to `wait`.
    """
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise VLMError(
            "invalid_request",
            f"the lock {path.name} cannot be made ({error.strerror}); give a folder that may be written to",
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            raise VLMError(
                "invalid_request",
                f"process {holder or 'of unknown number'} is writing to {path.with_suffix('.jsonl').name}; "
                "expected to be the only one; wait for it, or give another --out",
            ) from None
        with suppress(OSError):  # the number is for people; on a full disk the lock still holds
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a crash, sees the old file or the new one whole."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "no regular file")
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise VLMError(
            "invalid_request",
            f"{path.name} cannot be written ({error.strerror}); what was there is whole; free some space, run again",
        ) from None


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
