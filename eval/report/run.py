"""One run as the report needs it: its answers, each with what every scorer says of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.records import Prediction
from eval.run.folder import RunFolder
from eval.run.journal import read_journals
from eval.scorers import Verdict
from eval.verdicts import verdicts
from vlm.errors import VLMError


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a sample in one run."""

    record: Prediction
    verdicts: Mapping[str, Verdict | None]
    """By scorer, the headline first; empty where the sample ended in an error."""

    @property
    def is_answer(self) -> bool:
        return self.record.error is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run's folder, read."""

    path: Path
    name: str
    """What it is called in the report; no two runs of one have the same."""
    manifest: Mapping[str, object]
    """Empty where there is none."""
    outcomes: Sequence[Outcome]

    @property
    def model(self) -> Mapping[str, object]:
        model = self.manifest.get("model")
        return model if isinstance(model, dict) else {}

    @property
    def selection(self) -> Mapping[str, object]:
        selection = self.manifest.get("selection")
        return selection if isinstance(selection, dict) else {}

    @property
    def shows_blank_pictures(self) -> bool:
        return self.selection.get("images") == "blank"


def read_runs(paths: Sequence[str | os.PathLike]) -> list[Run]:
    """Return the runs that lie in these folders. Raises: VLMError for a folder that holds no answers."""
    paths = [Path(path) for path in paths]
    return [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _read(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    if not folder.journals():
        raise VLMError("invalid_request", f"{path.name!r:.80} holds no answers; expected a run's folder; run it first")
    outcomes = [
        Outcome(record=record, verdicts={} if record.error is not None else verdicts(record))
        for record in read_journals(folder.journals())
    ]
    return Run(path=path, name=name, manifest=folder.manifest() or {}, outcomes=outcomes)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart; one that comes twice is numbered."""
    parts = [path.absolute().parts for path in paths]
    distinct = len(set(parts))
    length = next(length for length in range(1, 1 + max(map(len, parts))) if _num_ends(parts, length) == distinct)
    names: list[str] = []
    for each in parts:
        name = "/".join(each[-length:])
        names.append(name if name not in names else f"{name} ({names.count(name) + 1})")
    return names


def _num_ends(parts: Sequence[tuple[str, ...]], length: int) -> int:
    return len({each[-length:] for each in parts})
