"""From what `data.path` says to stored samples: a file, a folder of shards, or a pattern of names."""

import glob
from pathlib import Path

from vlm.errors import VLMError
from vlm.training.data.parquet import ParquetRows
from vlm.training.data.stored import Joined, Rows
from vlm.training.data.text_files import JsonArray, JsonLines, TextPassages

LINES, TEXT, PARQUET = (".jsonl", ".ndjson", ".json"), (".txt", ".md"), (".parquet",)


def open_rows(path: str) -> Rows:
    """Return the samples that lie at `path`: a file, all files of a folder, or those of a pattern such as a/*.parquet.

    Shards are taken in the order of their names and are one source: it is shuffled as a whole.

    Raises: VLMError where there is no file, or one of no known kind.
    """
    paths, title = _shards(path), Path(path).name
    unknown = [shard.name for shard in paths if shard.suffix.lower() not in LINES + TEXT + PARQUET]
    if unknown:
        raise _bad(f"{unknown[0]!r:.60} is of no known kind; expected one of {', '.join(LINES + TEXT + PARQUET)}")
    of_tables = [shard.suffix.lower() in PARQUET for shard in paths]
    if all(of_tables):
        return ParquetRows(paths, title)
    if any(of_tables):
        raise _bad(f"{title!r:.60} mixes parquet with other files; give each kind as a source of its own")
    parts = [_open_text(shard) for shard in paths]
    return parts[0] if len(parts) == 1 else Joined(parts, title)


def _shards(path: str) -> list[Path]:
    given = Path(path)
    if given.is_dir():
        found = [one for one in given.iterdir() if one.suffix.lower() in LINES + TEXT + PARQUET]
    elif given.exists():
        return [given]
    else:
        found = [Path(one) for one in glob.glob(path, recursive=True)]
    if not found:
        raise _bad(f"{given.name!r:.60} cannot be read: no file is there; give a file, a folder of files or a pattern")
    return sorted(found)


def _open_text(path: Path) -> Rows:
    if path.suffix.lower() in TEXT:
        return TextPassages(path)
    return JsonArray(path) if _begins_array(path) else JsonLines(path)


def _begins_array(path: Path) -> bool:
    """Tell whether a file named .json holds an array; many hold lines."""
    if path.suffix.lower() != ".json":
        return False
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _bad(message: str) -> VLMError:
    return VLMError("invalid_request", message)
