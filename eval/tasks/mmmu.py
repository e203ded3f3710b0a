"""MMMU: college exam questions with up to seven images, multiple choice or open; 900 in validation.

Questions and options refer to their images as `<image 1>`; only images that are referred to are shown. The answers of
test are not public ("?").

Source: lmms-eval, lmms_eval/tasks/mmmu/utils.py and mmmu_val.yaml (lmms-lab/MMMU, whose `options` is a list written out
as a text); VLMEvalKit, vlmeval/dataset/image_mcq.py (MMMUDataset), which puts images where the text refers to them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from eval.datasets.pictures import Picture
from eval.datasets.row import Row
from eval.prompts import DIRECT_CHOICE, IMAGE_MARKER, META_MMMU, VLMEVALKIT_CHOICE, Preset, named
from eval.records import Sample
from eval.tasks.samples import gold_letter, jsonl_sample, lettered_columns, sample
from eval.tasks.task import Format, Task

IMAGE_COLUMNS = tuple(f"image_{number}" for number in range(1, 8))


def referred(row: Row, question: str, options: Sequence[str], pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    """Return the pictures that question and options refer to, by number; all when they refer to none."""
    numbers = sorted({int(number) for number in IMAGE_MARKER.findall(" ".join((question, *options)))})
    if not numbers:
        return tuple(picture for picture in pictures if picture.ref is not None)
    missing = Picture(None, f"row {row.number} of {row.file.name} refers to an image that it does not have")
    return tuple(pictures[number - 1] if 0 < number <= len(pictures) else missing for number in numbers)


def _sample(row: Row, options: Sequence[str], pictures: Sequence[Picture]) -> Iterator[Sample]:
    question, name = row.text("question"), row.text("id")
    if row.values.get("answer") in (None, "?"):
        targets = ()
    else:
        targets = (gold_letter(row, "answer", options),) if options else row.texts("answer")
    if row.field("question_type") == "open" and options and targets:
        # VLMEvalKit has open questions as a choice between the right answer and "Other Answers".
        options, targets = (), (options[ord(targets[0]) - ord("A")],)
    fields = row.fields("subfield", "topic_difficulty", "img_type", "category")
    if "category" not in fields:
        # validation_Accounting_1 is a question of the subject Accounting.
        fields["category"] = name.partition("_")[2].rpartition("_")[0] or None
    yield sample(
        row,
        task="mmmu",
        id=name,
        images=referred(row, question, options, pictures),
        question=question,
        options=options,
        targets=targets,
        fields=fields | {"question_type": "multiple-choice" if options else "open"},
    )


def _parquet(row: Row) -> Iterator[Sample]:
    pictures = [row.pictures[column][0] for column in IMAGE_COLUMNS if row.pictures.get(column)]
    yield from _sample(row, row.texts("options"), pictures)


def _tsv(row: Row) -> Iterator[Sample]:
    yield from _sample(row, lettered_columns(row), row.images("image"))


def _jsonl(row: Row) -> Iterator[Sample]:
    yield jsonl_sample(row, "mmmu", {"question_type": "multiple-choice" if row.texts("options") else "open"})


def _lmms(sample: Sample) -> str:
    how = "with the option's letter from the given choices directly" if sample.options else None
    options = "\n{options}" if sample.options else ""
    return f"{{question}}{options}\n\nAnswer {how or 'the question using a single word or phrase'}."


def _vlmevalkit(sample: Sample) -> str:
    return VLMEVALKIT_CHOICE.template if sample.options else "Question: {question}\n"


TASK = Task(
    name="mmmu",
    title="MMMU",
    family="mmmu",
    formats=(
        Format(
            kind="parquet",
            source="lmms-lab/MMMU, MMMU/MMMU",
            columns=("id", "question", "options", "answer", "question_type", "image_1"),
            more=(*IMAGE_COLUMNS[1:], "subfield", "topic_difficulty", "img_type"),
            samples=_parquet,
        ),
        Format(
            kind="tsv",
            source="VLMEvalKit MMMU_DEV_VAL",
            columns=("index", "id", "image", "question", "A", "answer", "split"),
            samples=_tsv,
        ),
        Format(kind="jsonl", columns=("image", "question", "answer"), samples=_jsonl),
    ),
    prompts=named(
        DIRECT_CHOICE,
        META_MMMU,
        Preset(name="lmms-eval", template=_lmms, max_new_tokens=128),
        replace(VLMEVALKIT_CHOICE, template=_vlmevalkit, images="inline"),
    ),
    part="validation",
    tsv_names="MMMU_(?!Pro)",
)
