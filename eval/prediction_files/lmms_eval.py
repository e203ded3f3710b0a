"""lmms-eval's samples, as `--log_samples --output_path` writes them: `..._samples_TASK.jsonl`, a line a document.

A line has `doc_id`, `input` (the prompt), `target` (as a text), `filtered_resps` (the reply that was judged), `resps`
(the reply as it came, where that was another) and the metrics. The document is not in it: options are read from the
prompt.

Source: its package on PyPI, lmms_eval/loggers/evaluation_tracker.py (save_results_samples).
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from eval.prediction_files import ForeignAnswer, foreign_record, own_task
from eval.tasks import find

NAME = "lmms-eval"
_SAME_RULES = {
    "chartqa": {"relaxed_overall": "lmms_eval"},
    "ai2d": {"exact_match": "lmms_eval_ai2d"},
    "docvqa": {"anls": "lmms_eval"},
    "infovqa": {"anls": "lmms_eval"},
    "textvqa": {"exact_match": "lmms_eval_textvqa"},
    "vqav2": {"exact_match": "lmms_eval_vqav2"},
}
_LISTS = frozenset({"anls", "vqa_accuracy"})
"""Families whose target is a list of accepted answers."""
_OPTION = re.compile(r"^\(?([A-Z])[.)] (.*)$", re.MULTILINE)


def task_of(path: Path) -> str | None:
    """Return our task for a file by its name."""
    found = re.search(r"samples_(.+)$", path.stem)
    return own_task(found[1]) if found else None


def same_rules(task: str) -> Mapping[str, str]:
    return _SAME_RULES.get(task, {})


def answer(row: dict, task: str) -> ForeignAnswer:
    """Return what one line says."""
    prompt, reply = str(row.get("input", "")), first_text(row.get("resps", row["filtered_resps"]))
    family = find(task).family
    options = options_in(prompt) if family in ("multiple_choice", "mmmu") else ()
    half = next((half for half in ("human", "augmented") if f"relaxed_{half}_split" in row), None)
    record = foreign_record(
        id=str(row["doc_id"]),
        task=task,
        prompt=prompt,
        question=prompt,
        prediction=reply,
        target=targets(row["target"], is_list=family in _LISTS),
        options=options,
        fields={} if half is None else {"split": half},
    )
    return ForeignAnswer(record, figures(row))


def first_text(replies: object) -> str:
    """Return the first reply of however many lists. Raises: TypeError where there is no text."""
    while isinstance(replies, list) and replies:
        replies = replies[0]
    if not isinstance(replies, str):
        raise TypeError("no reply that is a text")
    return replies


def targets(target: object, *, is_list: bool) -> tuple[str, ...]:
    """Return the accepted answers of a target, which may be a list written as Python writes it."""
    if is_list and isinstance(target, str) and target.startswith("["):
        try:
            return tuple(str(each) for each in ast.literal_eval(target))
        except (ValueError, SyntaxError):
            pass
    return () if target in (None, "None", "") else (str(target),)


def options_in(prompt: str) -> tuple[str, ...]:
    """Return the options that a prompt lists as A., B., C., ..."""
    found: list[str] = []
    for letter, text in _OPTION.findall(prompt):
        if letter == chr(ord("A") + len(found)):
            found.append(text)
    return tuple(found)


def figures(row: dict) -> dict[str, float]:
    """Return the numbers of a line but for the document's."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ("doc_id", "index")
    }
