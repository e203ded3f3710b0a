"""AI2D: multiple choice about school-book diagrams, 3,088 test questions.

Many questions speak of letters, and the pictures exist in three variants whose scores differ by many points: letters
in filled boxes that hide the words (opaque, what most publish), in boxes that let them be read (transparent, also "no
mask"), or no letters at all (raw). One run has one variant, told in the field "variant".

Options may be letters themselves, so that a reply of "B" may mean the option B or the label B: `option_is_label` tells
these questions, and `abc_label` those about letters in the picture, where the data says so.

Source: lmms-eval, lmms_eval/tasks/ai2d/utils.py and ai2d.yaml (lmms-lab/ai2d, whose `answer` counts from 0);
allenai/molmo, olmo/hf_datasets/ai2d.py; VLMEvalKit, vlmeval/dataset/image_mcq.py.
"""

import re
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from eval.datasets.ai2d_folder import NO_OPTION, VARIANTS
from eval.datasets.row import Row
from eval.prompts import DIRECT_CHOICE, LMMS_CHOICE, META_AI2D_11B, META_AI2D_90B, VLMEVALKIT_CHOICE, named
from eval.records import Field, Sample
from eval.tasks.samples import gold_letter, jsonl_sample, lettered_columns, sample
from eval.tasks.task import Format, Task


def _sample(row: Row, options: Sequence[str], answer: str, image: str = "image", **more: Field | None) -> Sample:
    """Return one sample; `more` is its id and its fields, without those that are None."""
    name = str(more.pop("id", None) or "")
    return sample(
        row,
        task="ai2d",
        id=name,
        images=row.images(image, "raw"),
        question=row.text("question"),
        options=options,
        targets=(gold_letter(row, answer, options),),
        fields=_labels(options) | {key: value for key, value in more.items() if value is not None},
    )


def _labels(options: Sequence[str]) -> dict[str, Field]:
    return {"option_is_label": any(len(option) == 1 and option.isalpha() for option in options)}


def _variant(row: Row) -> str | None:
    """Return the variant that the names of the file and its folders tell."""
    if re.search(r"no[-_ ]?mask|transparent", str(row.file), re.IGNORECASE):
        return "transparent"
    return "opaque" if row.file.name == "AI2D_TEST.tsv" else None


def _lmms(row: Row) -> Iterator[Sample]:
    yield _sample(row, row.texts("options"), "answer", variant=_variant(row))


def _molmo(row: Row) -> Iterator[Sample]:
    # A question about letters has a row a variant; the others have one row that belongs to both.
    variants = ("transparent",) if row.field("has_transparent_box") else ("opaque",)
    is_lettered = row.field("abc_label")
    for variant in variants if is_lettered else ("opaque", "transparent"):
        name = row.text("question_id").removesuffix("_transparent")
        options = row.texts("answer_texts")
        yield _sample(row, options, "correct_answer", id=name, variant=variant, abc_label=is_lettered)


def _tsv(row: Row) -> Iterator[Sample]:
    more = {"variant": _variant(row), "category": row.field("category")}
    yield _sample(row, lettered_columns(row), "answer", id=row.text("index"), **more)


def _folder(row: Row) -> Iterator[Sample]:
    options = tuple("" if option == NO_OPTION else option for option in row.texts("answerTexts"))
    more = {"id": row.text("questionId"), "abc_label": bool(row.field("abcLabel"))}
    for variant in VARIANTS:
        yield _sample(row, options, "correctAnswer", image=variant, variant=variant, **more)


def _jsonl(row: Row) -> Iterator[Sample]:
    found = jsonl_sample(row, "ai2d")
    yield replace(found, fields={**_labels(found.options), **found.fields})


TASK = Task(
    name="ai2d",
    title="AI2D",
    family="multiple_choice",
    formats=(
        Format(
            kind="parquet",
            source="lmms-lab/ai2d (opaque), Efficient-Large-Model/ai2d-no-mask (transparent)",
            columns=("image", "question", "options", "answer"),
            samples=_lmms,
            assumed_variant="opaque",
        ),
        Format(
            kind="parquet",
            source="allenai/molmo (opaque and transparent)",
            columns=("image", "question", "answer_texts", "correct_answer", "question_id", "abc_label"),
            more=("has_transparent_box",),
            samples=_molmo,
        ),
        Format(
            kind="tsv",
            source="VLMEvalKit AI2D_TEST (opaque), AI2D_TEST_NO_MASK (transparent)",
            columns=("index", "image", "question", "A", "B", "answer"),
            samples=_tsv,
            assumed_variant="opaque",
        ),
        Format(
            kind="ai2d folder",
            source="Allen Institute for AI, ai2d-all.zip",
            columns=("question", "answerTexts", "correctAnswer", "abcLabel"),
            samples=_folder,
            default_variant="opaque",
        ),
        Format(kind="jsonl", columns=("image", "question", "options", "answer"), samples=_jsonl),
    ),
    prompts=named(DIRECT_CHOICE, META_AI2D_11B, META_AI2D_90B, LMMS_CHOICE, VLMEVALKIT_CHOICE),
    part="test",
    variants=VARIANTS,
    tsv_names="AI2D_",
)
