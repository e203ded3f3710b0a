"""MathVista: mathematics with pictures, multiple choice or a number or list; 1,000 questions in testmini.

How the answer is to be given (`answer_type`, `precision`, `unit`) is told in a hint, in lmms-eval's words.

Source: lmms-eval, lmms_eval/tasks/mathvista/utils.py and mathvista_evals.py (`create_one_query`; AI4Math/MathVista);
VLMEvalKit, vlmeval/dataset/image_vqa.py (MathVista_MINI, whose `question` has the hint in it already).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from eval.datasets.row import Row
from eval.prompts import DIRECT_CHOICE, META_MATHVISTA, Preset, named
from eval.records import Sample
from eval.tasks.samples import jsonl_sample, sample
from eval.tasks.task import Format, Task

_FIELDS = ("question_type", "answer_type", "unit")
_GROUPS = ("category", "context", "grade", "language", "source", "task")


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
    # TSV files say "1.0" or nothing.
    precision = {"precision": int(float(row.text("precision")))} if row.field("precision") is not None else {}
    yield sample(
        row,
        task="mathvista",
        id=row.text(name),
        images=row.images("decoded_image", "image"),
        question=row.text("question"),
        options=options,
        targets=_targets(row, options),
        fields=groups.fields(*_GROUPS) | row.fields(*_FIELDS) | precision,
    )


_SHORT_HINTS = {
    "choice": "Answer with the option's letter from the given choices directly.",
    "integer": "Answer the question using a single integer number.",
    "float-1": "Answer the question using a single floating-point number with one decimal place.",
    "float-2": "Answer the question using a single floating-point number with two decimal places.",
    "list": "Answer the question using a Python list.",
}
_HINTS = {
    "choice": "and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float-1": "requiring a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, "
    "1.4, at the end.",
    "float-2": "requiring a floating-point number with two decimal places and provide the final value, e.g., 1.23, "
    "1.34, 1.45, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at "
    "the end.",
}


def _form(sample: Sample) -> str:
    """Return what kind of answer is asked for, as both tables above tell kinds apart."""
    kind = sample.fields.get("answer_type")
    return "choice" if sample.options else f"float-{sample.fields.get('precision')}" if kind == "float" else str(kind)


def _question(sample: Sample) -> str:
    unit = sample.fields.get("unit")
    return f"{sample.question} (Unit: {unit})" if unit else sample.question


def _short(sample: Sample) -> str:
    return "\n".join(
        filter(None, ["{question}", "{options}" if sample.options else "", _SHORT_HINTS.get(_form(sample))])
    )


def _hint_last(sample: Sample) -> str:
    return "\n".join(filter(None, [_asked(sample), _hint(sample)]))


def _hint_first(sample: Sample) -> str:
    if "Hint: " in sample.question:
        return "{question}"
    return "\n".join(filter(None, [_hint(sample), _asked(sample)]))


def _asked(sample: Sample) -> str:
    return "Question: {question}" + ("\nChoices:\n{options}" if sample.options else "")


def _hint(sample: Sample) -> str:
    hint = _HINTS.get(_form(sample))
    return f"Hint: Please answer the question {hint}" if hint else ""


_LMMS = Preset(name="lmms-eval", template=_short, question=_question, max_new_tokens=16384)

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
        replace(_LMMS, name="lmms-eval-cot", template=_hint_last, option="({letter}) {text}"),
        replace(_LMMS, name="vlmevalkit", template=_hint_first, option="({letter}) {text}", max_new_tokens=512),
    ),
    part="testmini",
    tsv_names="MathVista_",
)
