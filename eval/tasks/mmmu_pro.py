"""MMMU-Pro: MMMU made harder; multiple choice only, 1,730 questions in each of three variants that are never mixed.

"standard-10" has ten options, "standard-4" has four, "vision" shows question and options in the picture alone. The
published number is the mean of standard-10 and vision, two runs.

Meta stitched several images into one, and so does its preset (side by side, for how is not published); the others
give them one by one.

Source: lmms-eval, lmms_eval/tasks/mmmu_pro/utils.py and mmmu_pro_*.yaml (MMMU/MMMU_Pro).
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from eval.datasets.row import Row
from eval.prompts import DIRECT_CHOICE, META_MMMU_PRO, META_MMMU_PRO_VISION, VLMEVALKIT_CHOICE, Preset, named
from eval.records import Sample
from eval.tasks.mmmu import IMAGE_COLUMNS, referred
from eval.tasks.samples import gold_letter, jsonl_sample, lettered_columns, sample
from eval.tasks.task import Format, Task

VARIANTS = ("standard-10", "standard-4", "vision")


def _variant(row: Row) -> str | None:
    """Return the variant that the names of the file and its folder tell."""
    name = f"{row.file.parent.name} {row.file.name}"
    for variant, pattern in (("vision", "vision|_V[._]"), ("standard-10", r"\b10|_10c"), ("standard-4", r"\(4|_4c")):
        if re.search(pattern, name):
            return variant
    return None if row.values.get("question") else "vision"


def _sample(row: Row, name: str, options: tuple[str, ...]) -> Iterator[Sample]:
    variant = _variant(row)
    question = "" if variant == "vision" else row.text("question")
    several = [row.pictures[column][0] for column in IMAGE_COLUMNS if row.pictures.get(column)]
    images = row.images("image") if variant == "vision" or not several else several
    yield sample(
        row,
        task="mmmu_pro",
        id=name,
        images=images if variant == "vision" else referred(row, question, options, images),
        question=question,
        options=options,
        targets=(gold_letter(row, "answer", options),),
        fields={"variant": variant} | {"category": row.field("subject") or row.field("category")},
    )


def _lmms(sample: Sample) -> str:
    how = "Answer with the option letter from the given choices directly."
    return f"{{question}}\n{{options}}\n\n{how}" if sample.question else how


def _meta(sample: Sample) -> str:
    return META_MMMU_PRO.template if sample.question else META_MMMU_PRO_VISION


def _vlmevalkit(sample: Sample) -> str:
    return VLMEVALKIT_CHOICE.template if sample.question else _lmms(sample)


TASK = Task(
    name="mmmu_pro",
    title="MMMU-Pro",
    family="multiple_choice",
    formats=(
        Format(
            kind="parquet",
            source="MMMU/MMMU_Pro",
            columns=("id", "options", "answer", "subject"),
            more=("question", "image", *IMAGE_COLUMNS),
            samples=lambda row: _sample(row, row.text("id"), row.texts("options")),
        ),
        Format(
            kind="tsv",
            source="VLMEvalKit MMMU_Pro_10c, MMMU_Pro_V",
            columns=("index", "image", "A", "B", "answer"),
            samples=lambda row: _sample(row, row.text("index"), lettered_columns(row)),
        ),
        Format(
            kind="jsonl",
            columns=("image", "question", "options", "answer"),
            samples=lambda row: [jsonl_sample(row, "mmmu_pro")],
        ),
    ),
    prompts=named(
        DIRECT_CHOICE,
        replace(META_MMMU_PRO, template=_meta),
        Preset(name="lmms-eval", template=_lmms, max_new_tokens=256),
        replace(VLMEVALKIT_CHOICE, template=_vlmevalkit, images="inline"),
    ),
    part="test",
    variants=VARIANTS,
    tsv_names="MMMU_Pro_",
)
