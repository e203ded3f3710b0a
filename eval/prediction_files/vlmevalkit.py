"""VLMEvalKit's files: MODEL_DATASET.xlsx (or .tsv, .json), and those with its verdicts that it writes beside them.

They have the columns of its data set without the pictures, and `prediction`; files of results also `eval_match`, a
number for each accepted answer, or `hit` for multiple choice.

Source: open-compass/VLMEvalKit, vlmeval/inference.py (infer_data_job), vlmeval/smp/file.py (dump) and
vlmeval/dataset/utils/vqa_eval.py (hit_calculate).
"""

import csv
import json
import math
import re
import string
from collections.abc import Mapping
from pathlib import Path

from eval import tasks
from eval.prediction_files import FORMATS, ForeignAnswer, foreign_record
from eval.prediction_files.lmms_eval import targets
from vlm.errors import VLMError
from vlm.packages import needed

NAME = "VLMEvalKit"
_OF_MATCHES = {
    "chartqa": max,
    "vqa_accuracy": lambda matches: math.fsum(matches) / len(matches),
    # Distances: what is more than half wrong is all wrong.
    "anls": lambda matches: 1 - min(matches) if 1 - min(matches) >= 0.5 else 0.0,
}
"""What is made of `eval_match`, by family."""
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")
_LISTS = frozenset({"anls", "vqa_accuracy"})
_GROUPS = ("split", "category", "l2-category", "question_type", "answer_type", "precision")


def rows(path: Path) -> list[dict]:
    """Return the rows of a file. Raises: VLMError when it is none of VLMEvalKit's."""
    kind = path.suffix.lower()
    if kind == ".xlsx":
        found = _sheet(path)
    elif kind in (".tsv", ".csv"):
        csv.field_size_limit(2**27)
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ","))
    elif kind == ".json":
        found = json.loads(path.read_bytes())
    else:
        path.open("rb").close()  # what is not there is no file of another kind
        found = None
    if not isinstance(found, list) or not found or not isinstance(found[0], dict) or "prediction" not in found[0]:
        raise VLMError("invalid_request", f"{path.name:.80} has no column 'prediction'; expected {FORMATS}")
    return found


def _sheet(path: Path) -> list[dict]:
    openpyxl = needed("openpyxl", f"{path.name:.60}")
    try:
        lines = openpyxl.load_workbook(path, read_only=True, data_only=True).active.iter_rows(values_only=True)
        names = [str(name) for name in next(lines, ())]
        return [dict(zip(names, line, strict=False)) for line in lines]
    except Exception as error:  # noqa: BLE001 (a damaged archive may raise anything)
        raise VLMError(
            "invalid_request", f"{path.name:.80} is no spreadsheet ({type(error).__name__}); expected {FORMATS}"
        ) from None


def task_of(path: Path) -> str | None:
    """Return our task for a file by the name of the data set in its own."""
    known = [name for name in tasks.names() if tasks.find(name).tsv_names]
    return next((name for name in known if re.search(f"(^|_){tasks.find(name).tsv_names}", path.stem)), None)


def same_rules(task: str) -> Mapping[str, str]:
    family = tasks.find(task).family
    if family == "multiple_choice":
        return {"hit": "vlmevalkit_exact_matching"}
    return {"eval_match": "vlmevalkit"} if family in _OF_MATCHES else {}


def answer(row: dict, task: str) -> ForeignAnswer:
    """Return what one row says."""
    options = [_text(row.get(letter)) for letter in string.ascii_uppercase]
    while options and not options[-1]:
        options.pop()
    question = _text(row.get("question"))
    groups = {name: row.get(name) for name in _GROUPS}
    record = foreign_record(
        id=_text(row["index"]),
        task=task,
        prompt=question,
        question=question,
        prediction=_text(row["prediction"]),
        target=targets(_text(row.get("answer")), is_list=tasks.find(task).family in _LISTS),
        options=tuple(options),
        fields={name: value for name, value in groups.items() if isinstance(value, str | int | float) and value != ""},
    )
    return ForeignAnswer(record, _figures(row, tasks.find(task).family))


def _figures(row: dict, family: str) -> dict[str, float]:
    """Return what VLMEvalKit made of a reply, where the file says so."""
    matches = [float(number) for number in _NUMBER.findall(_text(row.get("eval_match")).replace("np.float64", ""))]
    if matches and family in _OF_MATCHES:
        return {"eval_match": float(_OF_MATCHES[family](matches))}
    hit = _text(row.get("hit"))
    return {"hit": float({"True": 1, "False": 0}.get(hit, hit))} if hit else {}


def _text(value: object) -> str:
    """Return a cell as the text that VLMEvalKit makes of it."""
    return "" if value is None else str(value)
