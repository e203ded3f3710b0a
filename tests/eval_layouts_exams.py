"""Rows of the published layouts of exam questions, and what is to be read from them."""

import pyarrow as pa

from tests.eval_data_sets import embedded, write_parquet
from tests.eval_layouts import LETTERS, parquet, tsv

MMMU_ROW = {
    "id": "validation_Art_Theory_12",
    "question": "<image 2> left of <image 1>?",
    "options": "['<image 3>', 'two', \"it's\"]",
    "explanation": "?",
    **{f"image_{number}": embedded(number) for number in range(1, 5)},
    "answer": "C",
    "question_type": "multiple-choice",
    "subfield": "Art",
}
MATHVISTA_ROW = {
    "pid": "9",
    "question": "How long?",
    "image": "images/9.jpg",
    "decoded_image": embedded(5),
    "choices": None,
    "unit": "cm",
    "precision": 1.0,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": {"category": "math", "skills": ["a"], "img_height": 4, "task": "textbook"},
    "query": "Hint: ...",
}

EXAMS = {
    "lmms-lab/MMMU": (
        "mmmu",
        parquet(MMMU_ROW, "validation-00000-of-00001.parquet"),
        {
            "id": "validation_Art_Theory_12",
            "options": ("<image 3>", "two", "it's"),
            "targets": ("C",),
            "pictures": (1, 2, 3),
            "fields": {
                "split": "validation",
                "subfield": "Art",
                "category": "Art_Theory",
                "question_type": "multiple-choice",
            },
        },
    ),
    "MMMU, open": (
        "mmmu",
        parquet(
            MMMU_ROW | {"options": "[]", "answer": "['1/2', '0.5']", "question_type": "open"}, "validation.parquet"
        ),
        {"options": (), "targets": ("1/2", "0.5"), "pictures": (1, 2)},
    ),
    "VLMEvalKit MMMU": (
        "mmmu",
        tsv(
            {"id": "validation_Art_1", "question": "q", **LETTERS, "split": "validation", "category": "Art"},
            "MMMU_DEV_VAL.tsv",
        ),
        {"id": "validation_Art_1", "targets": ("B",), "options": ("one", "two", "three")},
    ),
    "VLMEvalKit MMMU, open": (
        "mmmu",
        tsv(
            {
                "id": "validation_Art_1",
                "question": "q",
                "A": "0.5",
                "B": "Other Answers",
                "answer": "A",
                "split": "validation",
                "question_type": "open",
            },
            "MMMU_DEV_VAL.tsv",
        ),
        {"targets": ("0.5",), "options": ()},
    ),
    "MMMU_Pro, standard": (
        "mmmu_pro",
        lambda folder: write_parquet(
            folder / "standard (10 options)" / "test.parquet",
            [MMMU_ROW | {"id": "test_Art_1", "subject": "Art", "question": "<image 1>?", "options": "['a', 'b', 'c']"}],
        ),
        {
            "id": "test_Art_1",
            "targets": ("C",),
            "pictures": (1,),
            "fields": {"split": "test", "variant": "standard-10", "category": "Art"},
        },
    ),
    "MMMU_Pro, vision": (
        "mmmu_pro",
        lambda folder: write_parquet(
            folder / "vision" / "test.parquet",
            [{"id": "t", "image": embedded(5), "options": ["a", "b"], "answer": "B", "subject": "Art"}],
        ),
        {
            "question": "",
            "options": ("a", "b"),
            "targets": ("B",),
            "fields": {"split": "test", "variant": "vision", "category": "Art"},
        },
    ),
    "VLMEvalKit MMMU_Pro": (
        "mmmu_pro",
        tsv({"question": "q <image 1>", **LETTERS, "category": "Art"}, "MMMU_Pro_10c.tsv"),
        {"targets": ("B",), "fields": {"variant": "standard-10", "category": "Art"}},
    ),
    "AI4Math/MathVista": (
        "mathvista",
        parquet(MATHVISTA_ROW, "testmini-00000-of-00001-725687bf7a18d64b.parquet", {"choices": pa.list_(pa.string())}),
        {
            "id": "9",
            "targets": ("1.2",),
            "fields": {
                "split": "testmini",
                "category": "math",
                "question_type": "free_form",
                "answer_type": "float",
                "unit": "cm",
                "precision": 1,
                "task_type": "textbook",
            },
        },
    ),
    "MathVista, choice": (
        "mathvista",
        parquet(
            MATHVISTA_ROW | {"choices": ["3", "4"], "answer": "4", "precision": None, "unit": None},
            "testmini.parquet",
            {"precision": pa.float64(), "unit": pa.string()},
        ),
        {"options": ("3", "4"), "targets": ("B",)},
    ),
    "VLMEvalKit MathVista": (
        "mathvista",
        tsv(
            {
                "question": "Hint: x\nQuestion: y",
                "choices": "['3', '4']",
                "answer": "4",
                "answer_type": "text",
                "precision": "1.0",
            },
            "MathVista_MINI.tsv",
        ),
        {
            "fields": {"split": "testmini", "answer_type": "text", "precision": 1},
            "question": "Hint: x\nQuestion: y",
            "options": ("3", "4"),
            "targets": ("B",),
        },
    ),
}
