"""ChartQA: questions about charts, half written by people ("human"), half generated from summaries ("augmented").

Test has 1,250 of each, so that the mean over all equals the mean of the two. Answers are one text; numbers are right
within 5 %, by rules that differ: see eval/scorers/chartqa.py.

Source: lmms-eval, lmms_eval/tasks/chartqa/utils.py and chartqa.yaml (lmms-lab/ChartQA, prompt); the card of
HuggingFaceM4/ChartQA; vis-nlp/ChartQA (folder).
"""

from collections.abc import Iterator

from eval.datasets.row import Row
from eval.datasets.table import part_named
from eval.prompts import (
    DIRECT,
    LMMS_WORD,
    META_CHARTQA_11B,
    META_CHARTQA_90B,
    VLMEVALKIT_PHRASE,
    after_newline,
    named,
)
from eval.records import Field, Sample
from eval.tasks.samples import answers, jsonl_sample, sample
from eval.tasks.task import Format, Task

HALVES = ("human", "augmented")


def _half(row: Row, column: str) -> str:
    """Return which half a row belongs to: everybody has their own words for it."""
    value = str(row.values.get(column, "")).lower()
    if "human" in value or value == "0":
        return "human"
    if "aug" in value or "machine" in value or value == "1":
        return "augmented"
    raise row.damaged(column, f"{value!r:.40}", "human or augmented")


def _sample(row: Row, question: str, answer: str, half: str, name: str = "") -> Iterator[Sample]:
    yield sample(
        row,
        task="chartqa",
        id=name,
        images=row.images("image"),
        question=row.text(question),
        targets=answers(row, answer),
        fields=_fields(row, half),
    )


def _fields(row: Row, half: str) -> dict[str, Field]:
    part = {"part": row.part} if row.part else {}
    return part | {"split": _half(row, half)}


def _jsonl(row: Row) -> Iterator[Sample]:
    has_half = "split" in row.values and part_named(row.text("split")) is None
    yield jsonl_sample(row, "chartqa", _fields(row, "split") if has_half else {})


TASK = Task(
    name="chartqa",
    title="ChartQA",
    family="chartqa",
    formats=(
        Format(
            kind="parquet",
            source="lmms-lab/ChartQA",
            columns=("image", "question", "answer", "type"),
            samples=lambda row: _sample(row, "question", "answer", "type"),
        ),
        Format(
            kind="parquet",
            source="HuggingFaceM4/ChartQA",
            columns=("image", "query", "label", "human_or_machine"),
            samples=lambda row: _sample(row, "query", "label", "human_or_machine"),
        ),
        Format(
            kind="tsv",
            source="VLMEvalKit ChartQA_TEST",
            columns=("index", "image", "question", "answer", "split"),
            samples=lambda row: _sample(row, "question", "answer", "split", row.text("index")),
        ),
        Format(
            kind="chartqa folder",
            source="vis-nlp/ChartQA",
            columns=("imgname", "query", "label"),
            samples=lambda row: _sample(row, "query", "label", "half"),
        ),
        Format(kind="jsonl", columns=("image", "question", "answer"), samples=_jsonl),
    ),
    prompts=named(
        DIRECT,
        META_CHARTQA_11B,
        META_CHARTQA_90B,
        after_newline(META_CHARTQA_11B),
        after_newline(META_CHARTQA_90B),
        LMMS_WORD,
        VLMEVALKIT_PHRASE,
    ),
    part="test",
    halves=HALVES,
    tsv_names="ChartQA_",
)
