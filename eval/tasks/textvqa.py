"""TextVQA: questions about text in photographs, ten people's answers each, judged by VQA accuracy; 5,000 in validation.

Meta scored only base models on it and published no prompt. lmms-eval writes the question in small letters but for the
first, and leaves the length of the reply to the model (1,024 tokens for Llama 3.2).

Source: lmms-eval, lmms_eval/tasks/textvqa/ (lmms-lab/textvqa) and models/simple/llama_vision.py; VLMEvalKit,
vlmeval/dataset/image_vqa.py (TextVQA_VAL).
"""

from collections.abc import Iterator
from dataclasses import replace

from eval.datasets.row import Row
from eval.prompts import DIRECT, LMMS_PHRASE, VLMEVALKIT_PHRASE, named
from eval.records import Sample
from eval.tasks.samples import jsonl_sample, sample
from eval.tasks.task import Format, Task


def _sample(row: Row, name: str, answers: str) -> Iterator[Sample]:
    # The test part holds ten empty texts where answers would be.
    given = row.texts(answers)
    yield sample(
        row,
        task="textvqa",
        id=row.text(name),
        images=row.images("image"),
        question=row.text("question"),
        targets=given if any(given) else (),
    )


TASK = Task(
    name="textvqa",
    title="TextVQA",
    family="vqa_accuracy",
    formats=(
        Format(
            kind="parquet",
            source="lmms-lab/textvqa",
            columns=("image", "image_id", "question_id", "question", "answers", "image_classes"),
            samples=lambda row: _sample(row, "question_id", "answers"),
        ),
        Format(
            kind="tsv",
            source="VLMEvalKit TextVQA_VAL",
            columns=("index", "image", "question", "answer"),
            samples=lambda row: _sample(row, "index", "answer"),
        ),
        Format(
            kind="jsonl",
            columns=("image", "question"),
            samples=lambda row: [jsonl_sample(row, "textvqa")],
        ),
    ),
    prompts=named(
        DIRECT,
        replace(LMMS_PHRASE, question=lambda sample: sample.question.capitalize(), max_new_tokens=1024),
        VLMEVALKIT_PHRASE,
    ),
    part="validation",
    tsv_names="TextVQA_",
)
