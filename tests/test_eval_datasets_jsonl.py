"""JSON lines: what a line and a file may hold, and what becomes of those that are of no use."""

import re

import pytest

from eval import tasks
from tests.eval_data_sets import picture, write_jsonl, write_pictures
from vlm import VLMError

AI2D, CHARTQA, DOCVQA = map(tasks.find, ("ai2d", "chartqa", "docvqa"))
GOOD = {"image": "a.png", "question": "?", "answer": "x"}


def test_json_lines_with_one_several_or_missing_pictures(tmp_path):
    write_pictures(tmp_path, "a/1.png", "2.png")
    rows = [
        {"id": "x", "image": "a/1.png", "question": "One?", "answer": "1", "level": 3.0, "note": "y" * 500},
        {"image": ["a/1.png", "2.png"], "question": "Two?", "answer": ["2", "two"]},
        {"images": ["gone.png"], "question": "None?", "answers": ["0"]},
        {"image": str(tmp_path / "2.png"), "question": "Absolute?", "answer": 3.5},
    ]
    samples = list(DOCVQA.load(write_jsonl(tmp_path / "questions.jsonl", rows)))
    assert samples[0].id == "x"
    assert repr(samples[0].fields) == "{'level': 3}", "a whole number, and nothing that is too long for a label"
    assert [sample.targets for sample in samples] == [("1",), ("2", "two"), ("0",), ("3.5",)]
    assert [image.read() for image in samples[1].images] == [picture(1), picture(2)]
    assert samples[1].cluster == "a/1.png+2.png"
    assert [sample.problem for sample in samples] == [None, None, "image file 'gone.png' is missing", None]


@pytest.mark.parametrize(
    ("answer", "letter"), [("B", "B"), ("b", "B"), (1, "B"), ("1", "B"), (0, "A"), ("3", "D"), (2.0, "C")]
)
def test_the_right_option_is_a_letter_or_a_place(tmp_path, answer, letter):
    row = {"image": "1.png", "question": "?", "options": ["b", "a", "D", "c"], "answer": answer, "variant": "raw"}
    (sample,) = AI2D.load(write_jsonl(tmp_path / "q.jsonl", [row]))
    assert sample.targets == (letter,)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", r"row 2, column '2': found no JSON"),
        (b"[1]", r"row 2, column '1': found a list"),
        (b'"\xff"', r"row 2, column '1': found bytes that are no JSON"),
        (b'{"question": "?", "answer": "x"}', None),
        (b'{"image": 3, "question": "?", "answer": "x"}', r"row 2, column 'image': found 3"),
        (b'{"image": "a.png", "answer": "x"}', r"row 2, column 'question': found nothing"),
        (b'{"image": "a.png", "question": "?", "answer": ""}', r"row 2, column 'answer': found nothing"),
        (b'{"image": "a.png", "question": "?", "answer": ["a", ""]}', r"row 2, column 'answer': found an empty answer"),
        (b'{"image": "a.png", "question": "?", "answer": "E", "options": ["a", "b"]}', r"row 2, column 'answer'"),
        (b'{"image": "a.png", "question": "?", "answer": "\\u00df", "options": ["a"]}', r"row 2, column 'answer'"),
        (b'{"image": "a.png", "question": "?", "answer": "A", "options": [{}]}', r"row 2, column 'options'"),
    ],
)
def test_a_damaged_line_is_the_problem_of_its_own_sample_and_names_file_row_and_column(tmp_path, line, said):
    """B4. In a file of which no line is good, it is the file's."""
    write_pictures(tmp_path, "a.png")
    good = b'{"image": "a.png", "question": "?", "answer": "x"}\n'
    (tmp_path / "q.jsonl").write_bytes(good + line + b"\n" + good)
    first, bad, last = DOCVQA.load(tmp_path)
    assert first.problem is last.problem is None
    if said is None:
        assert bad.problem == "row 2 of q.jsonl has no image"
        return
    assert re.match(r"q\.jsonl, " + said, bad.problem)
    assert str(tmp_path) not in bad.problem
    assert bad.id.startswith("line-")
    (tmp_path / "q.jsonl").write_bytes(line + b"\n")
    with pytest.raises(VLMError, match=r"^q\.jsonl"):
        list(DOCVQA.load(tmp_path))


def test_bad_lines_are_named_by_what_they_hold_wherever_they_stand(tmp_path):
    write_pictures(tmp_path, "a.png")
    good = b'{"image": "a.png", "question": "?", "answer": "x"}\n'
    names = []
    for lines in ([b"{\n", good, b"\xff\n", b"{\n"], [good, b"\xff\n", b"{\n", b"{\n"]):
        (tmp_path / "q.jsonl").write_bytes(b"".join(lines))
        names.append(sorted(sample.id for sample in DOCVQA.load(tmp_path)))
    assert names[0] == names[1]
    assert len(set(names[0])) == 4


def test_a_damaged_line_that_says_its_id_keeps_it(tmp_path):
    good = {"image": "a.png", "question": "?", "answer": "x"}
    rows = [good | {"id": "7", "question": ""}, good]
    samples = list(DOCVQA.load(write_jsonl(tmp_path / "q.jsonl", rows)))
    assert (samples[0].id, samples[0].problem[:44]) == ("7", "q.jsonl, row 1, column 'question': found not")


def test_a_damaged_line_whose_id_is_a_number_keeps_it_too(tmp_path):
    (first, _) = CHARTQA.load(write_jsonl(tmp_path / "q.jsonl", [GOOD | {"id": 7, "question": ""}, GOOD]))
    assert (first.id, first.problem[:21]) == ("7", "q.jsonl, row 1, colum")


# Which columns a file has


def test_a_column_that_the_first_line_lacks_is_found_in_those_after_it(tmp_path):
    write_pictures(tmp_path, "a.png")
    first = {"image": "a.png", "question": "?"}
    bad, good = CHARTQA.load(write_jsonl(tmp_path / "test.jsonl", [first, GOOD]))
    assert bad.problem.startswith("test.jsonl, row 1, column 'answer': found nothing")
    assert good.problem is None


@pytest.mark.parametrize("task", ["chartqa", "mmmu", "mathvista"])
def test_answers_are_an_answer(tmp_path, task):
    row = {"images": ["a.png"], "question": "?", "answers": ["x", "y"]}
    (sample,) = tasks.find(task).load(write_jsonl(tmp_path / "q.jsonl", [row]))
    assert sample.targets == ("x", "y")
    row = row | {"options": ["a", "b"], "answers": 1}
    (sample,) = tasks.find(task).load(write_jsonl(tmp_path / "q.jsonl", [row]))
    assert sample.targets == ("B",)


@pytest.mark.parametrize("answer", ["A", 27])
def test_more_options_than_letters_are_the_problem_of_their_line(tmp_path, answer):
    good = GOOD | {"options": ["o"] * 26, "answer": 25, "variant": "raw"}
    rows = [good | {"options": ["o"] * 30, "answer": answer}, good]
    first, last = AI2D.load(write_jsonl(tmp_path / "q.jsonl", rows))
    assert "column 'options': found 30 options; expected at most 26, a letter each" in first.problem
    assert last.targets == ("Z",)


# Files that do not fit


def test_a_file_of_a_wanted_part_that_does_not_fit_is_named(tmp_path, caplog):
    write_jsonl(tmp_path / "one.jsonl", [GOOD])
    write_jsonl(tmp_path / "two.jsonl", [{"image": "a.png", "label": "x"}])
    write_jsonl(tmp_path / "train.jsonl", [{"label": "x"}])
    assert len(list(CHARTQA.load(tmp_path))) == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == ("chartqa: left out: two.jsonl has the columns image, label; expected image, question, answer")


def test_no_other_part_takes_the_place_of_one_that_does_not_fit(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [GOOD])
    write_jsonl(tmp_path / "test.jsonl", [{"image": "a.png", "label": "x"}])
    for split in (None, "test"):
        with pytest.raises(
            VLMError, match=r"^test\.jsonl has the columns image, label; expected image, question, answer"
        ):
            CHARTQA.load(tmp_path, split=split)
    assert len(list(CHARTQA.load(tmp_path, split="train"))) == 1
