"""MathVista: mathematics with pictures, multiple choice or a number or list; 1,000 questions in testmini.

How the answer is to be given (`answer_type`, `precision`, `unit`) is told in a hint: see mathvista_hints.py.

Source: lmms-eval, lmms_eval/tasks/mathvista/utils.py and mathvista_testmini_*.yaml (AI4Math/MathVista); VLMEvalKit,
vlmeval/dataset/image_vqa.py (MathVista_MINI, whose `question` has the hint in it already).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from eval.datasets.row import Row
from eval.prompts import DIRECT_CHOICE, META_MATHVISTA, Preset, named
from eval.records import Sample
from eval.tasks.mathvista_hints import hint_first, hint_last, short_hint, with_unit
from eval.tasks.samples import jsonl_sample, sample
from eval.tasks.task import Format, Task

_FIELDS = ("question_type", "answer_type", "unit")
_GROUPS = ("category", "context", "grade", "language", "source")


def _targets(row: Row, options: Sequence[str]) -> tuple[str, ...]:
    answer = row.values.get("answer")
    if answer in (None, ""):
        # Test has no public answers.
        return ()
    if not options:
        return (row.text("answer"),)
    if answer not in options:
        raise row.damaged("answer", f"{answer!r:.40}", "the text of one of the choices")
    return (chr(ord("A") + options.index(answer)),)


def _sample(row: Row, name: str) -> Iterator[Sample]:
    about = row.values.get("metadata")
    groups = Row(file=row.file, number=row.number, values=about) if isinstance(about, dict) else row
    options = row.texts("choices")
    precision = {"precision": row.integer("precision")} if row.field("precision") is not None else {}
    # "task" is taken: it is the benchmark.
    kind = {"task_type": groups.field("task")} if groups.field("task") is not None else {}
    yield sample(
        row,
        task="mathvista",
        id=row.text(name),
        images=row.images("decoded_image", "image"),
        question=row.text("question"),
        options=options,
        targets=_targets(row, options),
        fields=groups.fields(*_GROUPS) | row.fields(*_FIELDS) | precision | kind,
    )


_LMMS = Preset(name="lmms-eval", template=short_hint, question=with_unit, max_new_tokens=16384)

TASK = Task(
    name="mathvista",
    title="MathVista",
    family="mathvista",
    formats=(
        Format(
            kind="parquet",
            source="AI4Math/MathVista",
            columns=("pid", "question", "decoded_image", "choices", "answer", "answer_type"),
            more=("unit", "precision", "question_type", "metadata"),
            samples=lambda row: _sample(row, "pid"),
        ),
        Format(
            kind="tsv",
            source="VLMEvalKit MathVista_MINI",
            columns=("index", "image", "question", "choices", "answer", "answer_type"),
            samples=lambda row: _sample(row, "index"),
        ),
        Format(
            kind="jsonl",
            columns=("image", "question", "answer"),
            samples=lambda row: [jsonl_sample(row, "mathvista")],
        ),
    ),
    prompts=named(
        DIRECT_CHOICE,
        META_MATHVISTA,
        _LMMS,
        replace(_LMMS, name="lmms-eval-cot", template=hint_last, option="({letter}) {text}"),
        replace(_LMMS, name="vlmevalkit", template=hint_first, option="({letter}) {text}", max_new_tokens=512),
    ),
    part="testmini",
    tsv_names="MathVista_",
)
