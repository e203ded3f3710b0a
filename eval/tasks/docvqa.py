"""DocVQA: questions about scanned pages; any of a few spellings is accepted, judged by ANLS.

Validation has 5,349 questions; those of test have no public answers, so that a run on test can only be handed in.

Source: lmms-eval, lmms_eval/tasks/docvqa/ (lmms-lab/DocVQA); VLMEvalKit, vlmeval/dataset/image_vqa.py (DocVQA_VAL).
"""

from collections.abc import Iterator

from eval.datasets.row import Row
from eval.prompts import DIRECT, LMMS_PHRASE, META_DOCVQA, VLMEVALKIT_PHRASE, named
from eval.records import Sample
from eval.tasks.samples import jsonl_sample, sample
from eval.tasks.task import Format, Task


def _parquet(row: Row) -> Iterator[Sample]:
    types = row.texts("question_types")
    yield sample(
        row,
        task="docvqa",
        id=row.text("questionId"),
        images=row.images("image"),
        question=row.text("question"),
        targets=row.texts("answers"),
        fields={"question_type": ", ".join(types)} if types else {},
    )


def _tsv(row: Row) -> Iterator[Sample]:
    yield sample(
        row,
        task="docvqa",
        id=row.text("index"),
        images=row.images("image"),
        question=row.text("question"),
        targets=row.texts("answer"),
    )


TASK = Task(
    name="docvqa",
    title="DocVQA",
    family="anls",
    formats=(
        Format(
            kind="parquet",
            source="lmms-lab/DocVQA",
            columns=("image", "questionId", "question", "answers", "docId"),
            more=("question_types",),
            samples=_parquet,
        ),
        Format(
            kind="tsv", source="VLMEvalKit DocVQA_VAL", columns=("index", "image", "question", "answer"), samples=_tsv
        ),
        Format(
            kind="jsonl",
            columns=("image", "question"),
            samples=lambda row: [jsonl_sample(row, "docvqa")],
        ),
    ),
    prompts=named(DIRECT, META_DOCVQA, LMMS_PHRASE, VLMEVALKIT_PHRASE),
    part="validation",
    tsv_names="DocVQA_",
)
