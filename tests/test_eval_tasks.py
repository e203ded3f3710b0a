"""Every task reads the published layouts without being told which; samples are named alike whatever the order."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from eval import tasks
from tests.eval_data_sets import base64_text, embedded, picture, write_jsonl, write_parquet, write_tsv
from tests.eval_layouts import PICTURES
from tests.eval_layouts_exams import EXAMS, MATHVISTA_ROW, MMMU_ROW
from vlm.errors import VLMError

ROOT = Path(__file__).parent.parent
PUBLISHED = {**PICTURES, **EXAMS}


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


# Rows


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


def test_nothing_heavy_is_imported_to_know_the_tasks():
    program = (
        "import sys, eval.datasets, eval.prompts, eval.records; from eval import tasks\n"
        "for name in tasks.names(): tasks.find(name)\n"
        "heavy = 'torch gradio ray transformers pandas pyarrow scipy httpx PIL numpy'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
