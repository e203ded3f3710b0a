"""lm-evaluation-harness's samples, as `--log_samples --output_path` writes them: `samples_TASK_DATE.jsonl`.

A line has `doc_id`, `doc` (the data set's row), `target`, `arguments` (with the prompt), `resps`, `filtered_resps`,
`filter` and the metrics; a task with several filters has a line for each.

Source: its package on PyPI, lm_eval/evaluator.py and lm_eval/loggers/evaluation_tracker.py (save_results_samples).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from eval.prediction_files import ForeignAnswer, foreign_record, own_task
from eval.prediction_files.lmms_eval import figures, first_text, targets

NAME = "lm-evaluation-harness"
_CHARTQA = ("exact_match", "relaxed_accuracy", "anywhere_accuracy")
_HALVES = {0: "human", 1: "augmented"}


def task_of(path: Path) -> str | None:
    """Return our task for a file by its name."""
    found = re.search(r"samples_(.+?)(_\d{4}-\d\d-\d\dT.*)?$", path.stem)
    return own_task(found[1]) if found else None


def same_rules(task: str) -> Mapping[str, str]:
    return {name: f"lm_eval_{name}" for name in _CHARTQA} if task == "chartqa" else {}


def answer(row: dict, task: str) -> ForeignAnswer:
    """Return what one line says."""
    prompt = str(row["arguments"]["gen_args_0"]["arg_0"])
    document = row["doc"] if isinstance(row["doc"], dict) else {}
    half = _HALVES.get(document.get("human_or_machine"))
    filtered = "" if row.get("filter", "none") == "none" else f"-{row['filter']}"
    record = foreign_record(
        id=f"{row['doc_id']}{filtered}",
        task=task,
        prompt=prompt,
        question=str(document.get("query") or document.get("question") or prompt),
        prediction=first_text(row["resps"]),
        target=targets(row["target"], is_list=False),
        fields={} if half is None else {"split": half},
    )
    return ForeignAnswer(record, figures(row))
