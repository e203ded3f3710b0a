"""VQAv2: questions about photographs, ten people's answers each, judged by VQA accuracy; 214,354 in validation.

The answers of test and testdev are not public.

Source: lmms-eval, lmms_eval/tasks/vqav2/ (lmms-lab/VQAv2, whose `answers` are records).
"""

from collections.abc import Iterator
from dataclasses import replace

from eval.datasets.row import Row
from eval.prompts import DIRECT, LMMS_PHRASE, META_VQAV2, VLMEVALKIT_PHRASE, named
from eval.records import Sample
from eval.tasks.samples import jsonl_sample, sample
from eval.tasks.task import Format, Task


def _parquet(row: Row) -> Iterator[Sample]:
    yield sample(
        row,
        task="vqav2",
        id=row.text("question_id"),
        images=row.images("image"),
        question=row.text("question"),
        targets=row.texts("answers", key="answer"),
        fields=row.fields("question_type", "answer_type"),
    )


TASK = Task(
    name="vqav2",
    title="VQAv2",
    family="vqa_accuracy",
    formats=(
        Format(
            kind="parquet",
            source="lmms-lab/VQAv2",
            columns=("image", "question_id", "question", "answers", "multiple_choice_answer"),
            more=("question_type", "answer_type"),
            samples=_parquet,
        ),
        Format(
            kind="jsonl",
            columns=("image", "question"),
            samples=lambda row: [jsonl_sample(row, "vqav2")],
        ),
    ),
    prompts=named(DIRECT, META_VQAV2, replace(LMMS_PHRASE, max_new_tokens=16), VLMEVALKIT_PHRASE),
    part="validation",
)
