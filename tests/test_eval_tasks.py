"""Every task reads the published layouts without being told which; samples are named alike whatever the order."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import tasks
from eval.records import ImageRef, Prediction, Prompt, Sample
from tests.eval_data_sets import (
    base64_text,
    embedded,
    picture,
    write_ai2d,
    write_chartqa,
    write_jsonl,
    write_parquet,
    write_tsv,
)
from vlm.errors import VLMError

ROOT = Path(__file__).parent.parent
ANSWER_RECORD = pa.list_(pa.struct([("answer", pa.string()), ("answer_confidence", pa.string())]))
TEN = [*["a dog"] * 7, "dog", "dog", "cat"]


def parquet(row: dict, name: str = "test-00000-of-00001.parquet", types: dict | None = None):
    return lambda folder: write_parquet(folder / "data" / name, [row], types=types)


def tsv(row: dict, name: str):
    return lambda folder: write_tsv(folder / name, [{"index": 7, "image": base64_text(picture(5))} | row])


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
LETTERS = {"A": "one", "B": "two", "C": "three", "answer": "B"}

PUBLISHED = {
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


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_published_layout_is_read_without_being_told(layout, tmp_path):
    name, write, expected = PUBLISHED[layout]
    write(tmp_path)
    (sample,) = tasks.find(name).load(tmp_path)
    assert sample.task == name
    assert sample.problem is None
    pictures = [picture(number) for number in expected.pop("pictures", (5,))]
    assert [image.read() for image in sample.images] == pictures
    for field, value in expected.items():
        assert getattr(sample, field) == value, field
    assert sample.id
    for preset in tasks.find(name).prompts:
        assert tasks.find(name).prompt(sample, preset).text()


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_reads_json_lines(name, tmp_path):
    task = tasks.find(name)
    (tmp_path / "1.png").write_bytes(picture(5))
    row = {"id": "a", "image": "1.png", "question": "q", "answer": "B", "level": 3}
    if "options" in next(each.columns for each in task.formats if each.kind == "jsonl"):
        row["options"] = ["x", "y"]
    (sample,) = task.load(write_jsonl(tmp_path / "q.jsonl", [row]), variant=next(iter(task.variants), None))
    assert (sample.task, sample.id, sample.question, sample.targets) == (name, "a", "q", ("B",))
    assert sample.fields["level"] == 3


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_is_complete(name):
    task = tasks.find(name)
    assert task.name == name
    assert task.default_prompt in task.prompts
    assert all(preset.name == key for key, preset in task.prompts.items())
    assert {"direct", "vlmevalkit", "lmms-eval"} <= set(task.prompts)
    kinds = [(each.kind, each.columns) for each in task.formats]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("name", tasks.names())
def test_no_two_formats_of_a_task_are_taken_for_each_other(name):
    """Of each format that is the first to fit a table with just its own columns."""
    formats = tasks.find(name).formats
    for place, layout in enumerate(formats):
        earlier = [each for each in formats[:place] if each.kind == layout.kind]
        assert not [each for each in earlier if set(each.columns) <= {*layout.columns, *layout.more}]


# Names


def chart_rows(num: int = 12) -> list[dict]:
    """Rows on four charts, of which two are equal in everything."""
    rows = [
        {"image": embedded(number % 4), "question": f"q{number // 3}", "answer": str(number % 2), "type": "human_test"}
        for number in range(num)
    ]
    return [*rows, dict(rows[5])]


def test_ids_do_not_depend_on_order_or_files(tmp_path):
    chartqa = tasks.find("chartqa")
    rows = chart_rows()
    write_parquet(tmp_path / "one" / "test.parquet", rows)
    random.Random(1).shuffle(rows)
    for number, part in enumerate((rows[:3], rows[3:4], rows[4:])):
        write_parquet(tmp_path / "three" / f"test-{number:05}-of-00003.parquet", part)

    def by_id(folder):
        return {sample.id: (sample.question, sample.targets, sample.cluster) for sample in chartqa.load(folder)}

    assert by_id(tmp_path / "one") == by_id(tmp_path / "three")
    assert len(by_id(tmp_path / "one")) == 13
    assert sum(name.endswith("-2") for name in by_id(tmp_path / "one")) == 1


def test_the_same_question_in_both_halves_keeps_its_names(tmp_path):
    row = {"image": embedded(1), "question": "q", "answer": "1"}
    rows = [row | {"type": kind} for kind in ("human_test", "augmented_test")]
    first = write_parquet(tmp_path / "a.parquet", rows)
    second = write_parquet(tmp_path / "b.parquet", rows[::-1])
    names = [{s.fields["split"]: s.id for s in tasks.find("chartqa").load(path)} for path in (first, second)]
    assert names[0] == names[1]
    assert len(set(names[0].values())) == 2


def test_an_id_that_comes_twice_is_an_error(tmp_path):
    rows = [{"id": name, "image": "1.png", "question": "q", "answer": "x"} for name in ("a", "b", "a")]
    with pytest.raises(VLMError, match=r"^q\.jsonl, row 3, column 'id': found 'a' for a second time"):
        list(tasks.find("docvqa").load(write_jsonl(tmp_path / "q.jsonl", rows)))


# Parts, halves, variants, limit


@pytest.mark.parametrize(
    ("split", "halves"),
    [
        (None, ["augmented", "human"]),
        ("both", ["augmented", "human"]),
        ("human", ["human"]),
        ("Augmented, test", ["augmented"]),
        ("human,augmented", ["augmented", "human"]),
    ],
)
def test_chartqa_halves(tmp_path, split, halves):
    write_chartqa(tmp_path, num=1)
    samples = list(tasks.find("chartqa").load(tmp_path, split=split))
    assert [sample.fields["split"] for sample in samples] == halves


def test_limit_takes_the_first_and_reads_no_further(tmp_path):
    rows = [{"image": "1.png", "question": f"q{number}", "answer": "x"} for number in range(5)]
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    path.write_bytes(path.read_bytes() + b"no JSON\n")
    samples = tasks.find("docvqa").load(path, limit=3)
    assert [sample.question for sample in samples] == ["q0", "q1", "q2"]


def test_rows_of_another_part_are_left_out(tmp_path):
    row = {"question": "q", **LETTERS, "image": base64_text(picture(5))}
    rows = [row | {"index": n, "id": f"{part}_Art_{n}", "split": part} for n, part in enumerate(("dev", "validation"))]
    path = write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    mmmu = tasks.find("mmmu")
    assert [sample.id for sample in mmmu.load(path)] == ["validation_Art_1"]
    assert [sample.id for sample in mmmu.load(path, split="dev")] == ["dev_Art_0"]
    assert len(list(mmmu.load(path, split="val,dev"))) == 2


def test_lines_of_another_part_are_left_out(tmp_path):
    row = {"image": "1.png", "question": "q", "answer": "x"}
    rows = [row | {"id": part, "split": part} for part in ("train", "val", "test", "unheard of")]
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    docvqa = tasks.find("docvqa")
    assert [sample.id for sample in docvqa.load(path)] == ["val", "unheard of"]
    assert [sample.fields["split"] for sample in docvqa.load(path, split="test")] == ["test", "unheard of"]


def test_the_folder_names_the_part_where_the_file_does_not(tmp_path):
    for part in ("train", "test"):
        _, write, _ = PUBLISHED["lmms-lab/ChartQA"]
        write(tmp_path / part).rename(tmp_path / part / "0000.parquet")
    assert [sample.fields["part"] for sample in tasks.find("chartqa").load(tmp_path)] == ["test"]
    assert [sample.fields["part"] for sample in tasks.find("chartqa").load(tmp_path, split="train")] == ["train"]


def test_answers_that_are_kept_secret_are_none(tmp_path):
    rows = {
        "mmmu": MMMU_ROW | {"answer": "?"},
        "textvqa": {
            **{"image_id": "x", "question_id": 1, "question": "q", "image": embedded(5), "image_classes": ["a"]},
            "answers": [""] * 10,
        },
        "mathvista": MATHVISTA_ROW | {"answer": ""},
    }
    for name, row in rows.items():
        path = write_parquet(tmp_path / name / "test.parquet", [row], types={"choices": pa.list_(pa.string())})
        (sample,) = tasks.find(name).load(path)
        assert sample.targets == ()


WRONG_WISHES = {
    "split": ({"split": "humans"}, r"split is 'humans'; ChartQA offers human, augmented, train, validation, test"),
    "type of split": ({"split": 3}, r"split is 3; ChartQA offers"),
    "part": ({"split": "val"}, r"the data has only test; expected validation; choose what there is"),
    "variant": ({"variant": "raw"}, r"variant is 'raw'; ChartQA offers none, for it has only one"),
    "limit": ({"limit": 0}, r"limit is 0; expected a whole number from 1"),
    "type of limit": ({"limit": True}, r"limit is True"),
}


@pytest.mark.parametrize("wish", WRONG_WISHES)
def test_a_wish_that_cannot_be_met_is_refused_at_once(wish, tmp_path):
    options, said = WRONG_WISHES[wish]
    with pytest.raises(VLMError, match=said):
        tasks.find("chartqa").load(write_chartqa(tmp_path), **options)


def test_when_nothing_is_left_the_error_says_what_there_was(tmp_path):
    write_chartqa(tmp_path)
    (tmp_path / "test_human.json").unlink()
    with pytest.raises(VLMError, match=r"test_augmented\.json has only augmented; expected human, test"):
        list(tasks.find("chartqa").load(tmp_path, split="human"))
    (tmp_path / "test_augmented.json").write_text("[]")
    with pytest.raises(VLMError, match=r"has no row; expected test"):
        list(tasks.find("chartqa").load(tmp_path))
    rows = [{"image": "1.png", "question": "q", "options": ["a", "b"], "answer": "A", "variant": "raw"}]
    with pytest.raises(VLMError, match=r"q\.jsonl has only raw; expected opaque"):
        list(tasks.find("ai2d").load(write_jsonl(tmp_path / "q.jsonl", rows), variant="opaque"))


def molmo_rows() -> list[dict]:
    row = {
        "question": "q",
        "image": embedded(1),
        "answer_texts": ["a", "b"],
        "correct_answer": 1,
        "image_name": "1.png",
    }
    return [
        row | {"question_id": "1-0", "abc_label": True, "has_transparent_box": False},
        row | {"question_id": "1-0_transparent", "abc_label": True, "has_transparent_box": True},
        row | {"question_id": "1-1", "abc_label": False, "has_transparent_box": False},
    ]


def test_variants_in_one_file_are_never_mixed(tmp_path):
    ai2d = tasks.find("ai2d")
    path = write_parquet(tmp_path / "test.parquet", molmo_rows())
    with pytest.raises(
        VLMError, match=r"row 2, is transparent and what came before is opaque; .*variant='transparent'"
    ):
        list(ai2d.load(path))
    for variant in ("opaque", "transparent"):
        samples = list(ai2d.load(path, variant=variant))
        assert [sample.id for sample in samples] == ["1-0", "1-1"]
        assert {sample.fields["variant"] for sample in samples} == {variant}
    with pytest.raises(VLMError, match="has only opaque, transparent; expected raw"):
        list(ai2d.load(path, variant="raw"))


def test_files_of_two_variants_are_never_mixed(tmp_path):
    row = {"index": 1, "image": base64_text(picture(5)), "question": "q", **LETTERS}
    write_tsv(tmp_path / "AI2D_TEST.tsv", [row])
    write_tsv(tmp_path / "AI2D_TEST_NO_MASK.tsv", [row])
    ai2d = tasks.find("ai2d")
    with pytest.raises(VLMError, match=r"AI2D_TEST_NO_MASK\.tsv, row 1, is transparent and what came before is opaque"):
        list(ai2d.load(tmp_path))
    for variant in ("opaque", "transparent"):
        assert [sample.fields["variant"] for sample in ai2d.load(tmp_path, variant=variant)] == [variant]
    for folder in ("standard (10 options)", "vision"):
        more = {"question": "q", "image_1": embedded(1)} if folder != "vision" else {"image": embedded(1)}
        row = {"id": "t", "options": ["a", "b"], "answer": "B", "subject": "Art"}
        write_parquet(tmp_path / "pro" / folder / "test.parquet", [row | more])
    with pytest.raises(VLMError, match=r"is vision and what came before is standard-10"):
        list(tasks.find("mmmu_pro").load(tmp_path / "pro"))


def test_what_says_its_variant_is_not_mixed_with_what_does_not(tmp_path):
    row = {"question": "q", "options": ["root", "leaf"], "answer": "0", "image": embedded(5)}
    ai2d = tasks.find("ai2d")
    for place, names in (("data", ("mask", "no-mask")), ("again", ("no-mask", "yes"))):
        for name in names:
            write_parquet(tmp_path / place / name / "test.parquet", [row])
        with pytest.raises(VLMError, match=r"is (transparent|opaque) and what came before is (opaque|transparent)"):
            list(ai2d.load(tmp_path / place))
        with pytest.raises(VLMError, match="some rows say their variant and some do not"):
            list(ai2d.load(tmp_path / place, variant="transparent"))


def test_a_variant_that_is_only_assumed_is_announced(tmp_path, caplog):
    _, write, _ = PUBLISHED["lmms-lab/ai2d"]
    write(tmp_path)
    ai2d = tasks.find("ai2d")
    list(ai2d.load(tmp_path))
    assert caplog.messages == ["test-00000-of-00001.parquet does not say which variant it is; taken as opaque"]
    caplog.clear()
    assert [sample.fields["variant"] for sample in ai2d.load(tmp_path, variant="transparent")] == ["transparent"]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, r"row 1, column 'variant': found nothing; expected one of opaque, transparent, raw, here or as variant="),
        ({"variant": "clear"}, r"row 1, column 'variant': found 'clear'; expected one of opaque"),
    ],
)
def test_json_lines_have_to_say_their_variant(tmp_path, more, said):
    row = {"image": "1.png", "question": "q", "options": ["a", "b"], "answer": "A"}
    path = write_jsonl(tmp_path / "q.jsonl", [row | more])
    with pytest.raises(VLMError, match=said):
        list(tasks.find("ai2d").load(path))


def test_ai2d_ids_are_the_same_in_every_variant(tmp_path):
    write_ai2d(tmp_path)
    ids = [[sample.id for sample in tasks.find("ai2d").load(tmp_path, variant=v)] for v in ("opaque", "raw")]
    assert ids[0] == ids[1]


def test_answers_of_vqav2_have_to_be_records(tmp_path):
    """TextVQA's are texts; its rows are none of VQAv2."""
    row = {"question_id": 1, "question": "q", "image": embedded(1), "multiple_choice_answer": "x"}
    path = write_parquet(tmp_path / "validation.parquet", [row | {"answers": [{"other": "x"}]}])
    with pytest.raises(
        VLMError, match=r"row 1, column 'answers': found a list with nothing; expected a list of answers"
    ):
        list(tasks.find("vqav2").load(path))


@pytest.mark.parametrize("precision", ["one", "1.5", "1e999"])
def test_a_precision_that_is_no_whole_number_names_file_row_and_column(tmp_path, precision):
    row = {"index": 1, "image": base64_text(picture(5)), "question": "q", "choices": "", "answer": "1"}
    path = write_tsv(tmp_path / "MathVista_MINI.tsv", [row | {"answer_type": "float", "precision": precision}])
    with pytest.raises(VLMError, match=r"row 1, column 'precision': found '.*'; expected a whole number"):
        list(tasks.find("mathvista").load(path))


def test_fields_that_scorers_know_otherwise_are_left_out(tmp_path):
    row = {"image": "1.png", "question": "q", "answer": "x", "prediction": "y", "task": "z", "level": "easy"}
    (sample,) = tasks.find("docvqa").load(write_jsonl(tmp_path / "q.jsonl", [row]))
    assert sample.fields == {"level": "easy"}


def test_an_image_that_a_question_refers_to_has_to_be_there(tmp_path):
    path = write_parquet(tmp_path / "validation.parquet", [MMMU_ROW | {"question": "<image 6>?"}])
    (sample,) = tasks.find("mmmu").load(path)
    assert sample.problem == "row 1 of validation.parquet refers to an image that it does not have"


# Records


def test_an_image_has_one_source(tmp_path):
    for sources in ({}, {"data": b"x", "path": tmp_path}, {"data": b"x", "load": lambda: b"x"}):
        with pytest.raises(ValueError, match="exactly one of path, data and load"):
            ImageRef(id="a", **sources)
    assert ImageRef(id="a", data=b"x").read() == ImageRef(id="a", load=lambda: b"x").read() == b"x"


def test_a_cluster_is_made_of_the_images_or_the_sample_itself():
    sample = Sample(id="s", task="t", images=(), question="q", targets=())
    assert sample.cluster == "s"
    images = tuple(ImageRef(id=name, data=b"x") for name in "ab")
    assert dataclasses.replace(sample, images=images).cluster == "a+b"


def test_a_prompt_shows_every_turn():
    image = {"type": "image", "image": ImageRef(id="1.png", data=b"x")}
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [image, {"type": "text", "text": "Why?"}]},
    ]
    prompt = Prompt(messages=turns, prefill="Because", max_new_tokens=3, name="x")
    assert prompt.text() == "system:\nBe short.\n\nuser:\n<image: 1.png>Why?\n\nassistant:\nBecause"


TEXT = st.text(max_size=10)
PREDICTIONS = st.builds(
    Prediction,
    **{name: st.text(st.characters(), max_size=10) for name in ("id", "task", "key", "prompt", "question")},
    prediction=st.none() | st.text(st.characters(), max_size=10),
    token_ids=st.none() | st.lists(st.integers(0, 200_000)).map(tuple),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    confidence=st.none() | st.floats(0, 1),
    target=st.lists(TEXT).map(tuple),
    error=st.none() | TEXT,
    images=st.lists(TEXT).map(tuple),
    options=st.lists(TEXT).map(tuple),
    fields=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT),
    timings=st.none() | st.dictionaries(TEXT, st.floats(0, 1e6)),
)


@given(prediction=PREDICTIONS)
def test_a_prediction_is_one_line_and_comes_back(prediction):
    line = prediction.to_json()
    assert "\n" not in line
    assert line.isascii()
    assert Prediction.from_json(line) == Prediction.from_json(line.encode()) == prediction


def test_the_first_fields_of_a_line_are_those_that_are_promised():
    names = [field.name for field in dataclasses.fields(Prediction)]
    promised = "id task key prompt prediction token_ids finish_reason confidence target error"
    assert " ".join(names[:10]) == promised


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON object"),
        ("[]", "no JSON object"),
        (b"\xff", "no JSON object"),
        ("{}", "lacks id, task, key"),
        ('{"id": "a", "x": 1}', "lacks task"),
    ],
)
def test_another_line_is_no_prediction(line, said):
    with pytest.raises(VLMError, match=said):
        Prediction.from_json(line)


def test_an_unknown_field_of_a_prediction_is_named():
    line = Prediction(
        **dict.fromkeys(("id", "task", "key", "prompt"), "x"),
        **dict.fromkeys(("prediction", "token_ids", "finish_reason", "confidence", "error")),
        target=(),
    ).to_json()
    with pytest.raises(VLMError, match="unknown field 'more'"):
        Prediction.from_json(line[:-1] + ', "more": 1}')


def test_nothing_heavy_is_imported_to_know_the_tasks():
    program = (
        "import sys, eval.datasets, eval.prompts, eval.records; from eval import tasks\n"
        "for name in tasks.names(): tasks.find(name)\n"
        "heavy = 'torch gradio ray transformers pandas pyarrow scipy httpx PIL numpy'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
