"""A run's folder made of another harness's file, and where its figures and ours part company on the same replies."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.prediction_files import PredictionFile
from eval.run.folder import MANIFEST, RunFolder
from eval.run.journal import Journal
from eval.run.manifest import new_manifest
from eval.verdicts import verdicts
from vlm.errors import VLMError

SAME_WITHIN = 1e-6


def write_run(file: PredictionFile, source: Path, out: Path, command: Sequence[str]) -> None:
    """Write the folder of a run that holds the replies of `file`, to be scored, reported and compared like any other.

    Raises: VLMError for a folder that holds a run, or two replies to one question.
    """
    folder = RunFolder(out)
    folder.create()
    with folder.claimed(None):
        if folder.manifest() is not None or folder.journals():
            raise VLMError("invalid_request", f"the folder {out.name!r:.60} holds a run; expected none; give another")
        seen: set[str] = set()
        for answer in file.answers:
            if answer.record.id in seen:
                raise VLMError(
                    "invalid_request",
                    f"{source.name:.60} has two replies to question {answer.record.id:.40}; expected one; was the file "
                    "written to twice?",
                )
            seen.add(answer.record.id)
        described = {"prompt": [file.harness], "num_samples": len(file.answers), "samples": None, "prompts": None}
        model = {"backend": f"predictions of {file.harness}", "name": source.name}
        with Journal(folder.journal_path(None)) as journal:
            for answer in file.answers:
                journal.append(answer.record)
        folder.write_json(
            MANIFEST,
            new_manifest(
                command=command,
                data=None,
                tasks={file.task: described},
                selection={"limit": None, "samples": None, "options": {}, "images": "as they are"},
                model=model,
                generation={},
                batch_size=1,
            ),
        )


def agreement(file: PredictionFile) -> list[dict]:
    """Return, for each figure of theirs that a scorer of ours stands for, both means and the questions that differ."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for record, figures in file.answers:
        ours = _verdicts(file.same_rules, record) if set(file.same_rules) & set(figures) else {}
        for figure, scorer in file.same_rules.items():
            if figure in figures and ours.get(scorer) is not None:
                found.setdefault(figure, []).append((record.id, figures[figure], ours[scorer].value))
    return [
        {
            "figure": figure,
            "scorer": file.same_rules[figure],
            "n": len(rows),
            "theirs": math.fsum(theirs for _, theirs, _ in rows) / len(rows),
            "ours": math.fsum(ours for _, _, ours in rows) / len(rows),
            "differ": [name for name, theirs, ours in rows if abs(theirs - ours) > SAME_WITHIN],
        }
        for figure, rows in found.items()
    ]


def _verdicts(same_rules: Mapping[str, str], record) -> dict:
    return verdicts(record, sorted(set(same_rules.values())))
