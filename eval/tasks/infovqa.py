"""InfographicVQA: questions about infographics, judged by ANLS as DocVQA is; 2,801 in validation.

Meta scored only base models on it and published no prompt.

Source: lmms-eval, lmms_eval/tasks/infovqa/ (lmms-lab/DocVQA, folder InfographicVQA); VLMEvalKit,
vlmeval/dataset/image_vqa.py (InfoVQA_VAL).
"""

from collections.abc import Iterator

from eval.datasets.row import Row
from eval.prompts import DIRECT, LMMS_PHRASE, VLMEVALKIT_PHRASE, named
from eval.records import Sample
from eval.tasks.samples import jsonl_sample, sample
from eval.tasks.task import Format, Task


def _sample(row: Row, name: str, answers: str) -> Iterator[Sample]:
    kinds, operations = row.texts("answer_type"), row.texts("operation/reasoning")
    fields = {"answer_type": ", ".join(kinds), "question_type": ", ".join(operations)}
    yield sample(
        row,
        task="infovqa",
        id=row.text(name),
        images=row.images("image"),
        question=row.text("question"),
        targets=row.texts(answers),
        fields={key: value for key, value in fields.items() if value},
    )


TASK = Task(
    name="infovqa",
    title="InfographicVQA",
    family="anls",
    formats=(
        Format(
            kind="parquet",
            source="lmms-lab/DocVQA, InfographicVQA",
            columns=("image", "questionId", "question", "answers", "image_url"),
            more=("answer_type", "operation/reasoning"),
            samples=lambda row: _sample(row, "questionId", "answers"),
        ),
        Format(
            kind="tsv",
            source="VLMEvalKit InfoVQA_VAL",
            columns=("index", "image", "question", "answer"),
            samples=lambda row: _sample(row, "index", "answer"),
        ),
        Format(
            kind="jsonl",
            columns=("image", "question"),
            samples=lambda row: [jsonl_sample(row, "infovqa")],
        ),
    ),
    prompts=named(DIRECT, LMMS_PHRASE, VLMEVALKIT_PHRASE),
    part="validation",
    tsv_names="InfoVQA_",
)
