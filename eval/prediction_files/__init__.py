"""Other harnesses' files of predictions, read so that their replies can be judged by every scorer, and as they judged.

One file a harness: `lmms_eval` (`--log_samples`), `lm_eval` (`--log_samples`) and `vlmevalkit` (its prediction and
result files). They are told apart by what they hold.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval import tasks
from eval.records import Prediction
from vlm.errors import VLMError

FORMATS = "lmms-eval's or lm-evaluation-harness's samples_*.jsonl, or VLMEvalKit's xlsx, tsv or json with a prediction"


class ForeignAnswer(NamedTuple):
    """A reply that another harness collected."""

    record: Prediction
    figures: Mapping[str, float]
    """What that harness made of it, by its names."""


class PredictionFile(NamedTuple):
    """What another harness wrote of one task."""

    harness: str
    task: str
    """Ours."""
    answers: Sequence[ForeignAnswer]
    same_rules: Mapping[str, str]
    """Of that harness's figures those that a scorer of ours stands for: figure to scorer."""


def read_predictions(path: Path, task: str | None = None) -> PredictionFile:
    """Return what a file holds.

    task: ours; None goes by the name of the file. Raises: VLMError for a file of none of these kinds.
    """
    from eval.prediction_files import lm_eval, lmms_eval, vlmevalkit

    try:
        if path.suffix.lower() == ".jsonl":
            rows = _json_lines(path)
            harness = lm_eval if "doc" in rows[0] else lmms_eval
        else:
            rows, harness = vlmevalkit.rows(path), vlmevalkit
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is damaged: {error}"
        raise VLMError("invalid_request", f"{path.name:.80} cannot be read ({why:.80}); expected {FORMATS}") from None
    name = task or harness.task_of(path)
    if name is None:
        raise VLMError(
            "invalid_request", f"{path.name:.80} does not say of which task it is; give --task, as chartqa or ai2d"
        )
    tasks.find(name)
    answers = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise _damaged(path, number, TypeError("no object"))
        try:
            answers.append(harness.answer(row, name))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise _damaged(path, number, error) from None
    return PredictionFile(harness.NAME, name, answers, harness.same_rules(name))


def foreign_record(**named) -> Prediction:
    """Return a record of which only what another harness tells is known."""
    unknown = {"key": "", "token_ids": None, "finish_reason": None, "confidence": None, "error": None}
    return Prediction(**{**unknown, **named})


def own_task(name: str) -> str | None:
    """Return our task of which another harness's task name, as "docvqa_val", is a version; None for none."""
    known = sorted(tasks.names(), key=len, reverse=True)
    return next((task for task in known if name == task or name.startswith(f"{task}_")), None)


def _json_lines(path: Path) -> list[dict]:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _damaged(path, number, error) from None
            if not isinstance(row, dict) or "doc_id" not in row or "filtered_resps" not in row:
                raise _damaged(path, number, ValueError("no doc_id and filtered_resps"))
            rows.append(row)
    if not rows:
        raise VLMError("invalid_request", f"{path.name:.80} is empty; expected {FORMATS}")
    return rows


def _damaged(path: Path, number: int, error: Exception) -> VLMError:
    said = f"{type(error).__name__}: {error}"
    return VLMError("invalid_request", f"{path.name:.60}, row {number}: found {said:.60}; expected {FORMATS}")
