"""Rows of the published layouts about charts, diagrams, documents and photographs, and what is to be read from them."""

import pyarrow as pa

from tests.eval_data_sets import base64_text, embedded, picture, write_parquet, write_tsv

ANSWER_RECORD = pa.list_(pa.struct([("answer", pa.string()), ("answer_confidence", pa.string())]))
TEN = [*["a dog"] * 7, "dog", "dog", "cat"]


def parquet(row: dict, name: str = "test-00000-of-00001.parquet", types: dict | None = None):
    return lambda folder: write_parquet(folder / "data" / name, [row], types=types)


def tsv(row: dict, name: str):
    return lambda folder: write_tsv(folder / name, [{"index": 7, "image": base64_text(picture(5))} | row])


LETTERS = {"A": "one", "B": "two", "C": "three", "answer": "B"}

PICTURES = {
    "lmms-lab/ChartQA": (
        "chartqa",
        parquet({"type": "human_test", "question": "q", "answer": "3", "image": embedded(5)}),
        {"question": "q", "targets": ("3",), "fields": {"split": "human", "part": "test"}},
    ),
    "HuggingFaceM4/ChartQA": (
        "chartqa",
        parquet({"image": embedded(5), "query": "q", "label": ["3", "4"], "human_or_machine": 1}),
        {"question": "q", "targets": ("3", "4"), "fields": {"split": "augmented", "part": "test"}},
    ),
    "VLMEvalKit ChartQA": (
        "chartqa",
        tsv({"question": "q", "answer": "[2010, 2011]", "split": "test_augmented"}, "ChartQA_TEST.tsv"),
        {"id": "7", "targets": ("[2010, 2011]",), "fields": {"split": "augmented", "part": "test"}},
    ),
    "lmms-lab/ai2d": (
        "ai2d",
        parquet({"question": "q", "options": ["c", "D", "b", "a"], "answer": "1", "image": embedded(5)}),
        {
            "options": ("c", "D", "b", "a"),
            "targets": ("B",),
            "fields": {"split": "test", "variant": "opaque", "option_is_label": True},
        },
    ),
    "ai2d-no-mask": (
        "ai2d",
        lambda folder: write_parquet(
            folder / "ai2d-no-mask" / "test.parquet",
            [{"question": "q", "options": ["root", "leaf"], "answer": "0", "image": embedded(5)}],
        ),
        {"targets": ("A",), "fields": {"split": "test", "variant": "transparent", "option_is_label": False}},
    ),
    "VLMEvalKit AI2D": (
        "ai2d",
        tsv({"question": "q", **LETTERS, "category": "food"}, "AI2D_TEST_NO_MASK.tsv"),
        {
            "id": "7",
            "options": ("one", "two", "three"),
            "targets": ("B",),
            "fields": {"split": "test", "variant": "transparent", "option_is_label": False, "category": "food"},
        },
    ),
    "lmms-lab/DocVQA": (
        "docvqa",
        parquet(
            {
                "questionId": "49153",
                "question": "q",
                "question_types": ["form", "layout"],
                "image": embedded(5),
                "docId": 5,
                "answers": ["a", "A"],
            },
            "validation-00000-of-00001.parquet",
        ),
        {"id": "49153", "targets": ("a", "A"), "fields": {"split": "validation", "question_type": "form, layout"}},
    ),
    "DocVQA without answers": (
        "docvqa",
        parquet(
            {"questionId": "1", "question": "q", "image": embedded(5), "docId": 5, "answers": None},
            types={"answers": pa.list_(pa.string())},
        ),
        {"targets": (), "fields": {"split": "test"}},
    ),
    "lmms-lab/DocVQA, InfographicVQA": (
        "infovqa",
        parquet(
            {
                "questionId": "2",
                "question": "q",
                "answers": ["4"],
                "answer_type": ["non-extractive"],
                "image": embedded(5),
                "image_url": "u",
                "operation/reasoning": ["counting", "arithmetic"],
            },
            "validation.parquet",
        ),
        {
            "id": "2",
            "targets": ("4",),
            "fields": {
                "split": "validation",
                "answer_type": "non-extractive",
                "question_type": "counting, arithmetic",
            },
        },
    ),
    "lmms-lab/textvqa": (
        "textvqa",
        parquet(
            {
                "image_id": "x",
                "question_id": 34602,
                "question": "What Is This?",
                "image": embedded(5),
                "answers": TEN,
                "image_classes": ["Clock"],
            },
            "validation.parquet",
        ),
        {"id": "34602", "question": "What Is This?", "targets": tuple(TEN), "fields": {"split": "validation"}},
    ),
    "lmms-lab/VQAv2": (
        "vqav2",
        parquet(
            {
                "question_type": "what is",
                "multiple_choice_answer": "dog",
                "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in TEN],
                "image_id": 5,
                "answer_type": "other",
                "question_id": 262148000,
                "question": "q",
                "image": embedded(5),
            },
            "validation.parquet",
            {"answers": ANSWER_RECORD},
        ),
        {
            "id": "262148000",
            "targets": tuple(TEN),
            "fields": {"split": "validation", "question_type": "what is", "answer_type": "other"},
        },
    ),
}
"""By who publishes it so: the task, what writes it into a folder, and what the sample is."""
