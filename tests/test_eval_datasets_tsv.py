"""VLMEvalKit's TSV files: fields as pandas writes them, pictures in base64 or by another row's index."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import tasks
from eval.datasets.tsv import tsv_table
from tests.eval_data_sets import base64_text, picture, write_pictures, write_tsv
from vlm.errors import VLMError

DOCVQA, AI2D = tasks.find("docvqa"), tasks.find("ai2d")


def document(index: int, image: str | None = None, **more) -> dict:
    image = base64_text(picture(index)) if image is None else image
    return {"index": index, "image": image, "question": f"What is {index}?", "answer": f"['{index}', 'no']"} | more


def load(path, rows):
    return list(DOCVQA.load(write_tsv(path / "DocVQA_VAL.tsv", rows)))


def test_rows_come_with_their_pictures_and_answers(tmp_path):
    samples = load(tmp_path, [document(4), document(7)])
    assert [sample.id for sample in samples] == ["4", "7"]
    assert [sample.targets for sample in samples] == [("4", "no"), ("7", "no")]
    assert [sample.images[0].read() for sample in samples] == [picture(4), picture(7)]
    assert samples[0].fields == {"split": "validation"}
    copies = pickle.loads(pickle.dumps(samples))
    assert copies[1].images[0].read() == picture(7)


def test_a_picture_of_another_row_is_found_before_and_after_it(tmp_path):
    rows = [document(1), document(2, "1"), document(3, "5"), document(4, "5"), document(5), document(6)]
    samples = load(tmp_path, rows)
    assert [sample.id for sample in samples] == ["1", "2", "3", "4", "5", "6"]
    assert [sample.images[0].read() for sample in samples] == [picture(n) for n in (1, 1, 5, 5, 5, 6)]
    assert samples[0].cluster == samples[1].cluster != samples[2].cluster == samples[4].cluster


@pytest.mark.parametrize("reference", ["99", "3"])
def test_an_index_that_leads_to_no_picture_is_the_problem_of_its_sample(tmp_path, reference):
    """VLMEvalKit wants a row with a picture of its own: an index of an index leads nowhere."""
    samples = load(tmp_path, [document(1), document(2, reference), document(3, "1"), document(4)])
    assert samples[1].problem == f"row 2 of DocVQA_VAL.tsv takes its image from row '{reference}', which has none"
    assert [sample.problem for sample in samples[:1] + samples[2:]] == [None] * 3


def test_several_pictures_of_a_row(tmp_path):
    both = str([base64_text(picture(1)), base64_text(picture(2))])
    samples = load(tmp_path, [document(1, both), document(2, "1")])
    for sample in samples:
        assert [image.read() for image in sample.images] == [picture(1), picture(2)]


def test_pictures_may_be_files(tmp_path):
    write_pictures(tmp_path, "a/1.png", "b.png")
    rows = [{"index": 1, "image_path": "a/1.png"}, {"index": 2, "image_path": "['b.png', 'gone.png']"}]
    rows = [row | {"image": "", "question": "?", "answer": "['x']"} for row in rows]
    first, second = load(tmp_path, rows)
    assert first.images[0].read() == picture(1)
    assert [image.id for image in second.images] == ["b.png", "gone.png"]
    assert second.problem == "image file 'gone.png' is missing"


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("", "row 2 of DocVQA_VAL.tsv has no image"),
        ("!" * 100, "row 2 of DocVQA_VAL.tsv has an image that is no base64"),
        (base64_text(picture(3))[:-3], "no base64"),
        ("[" + "x" * 100 + "]", "no base64"),
        (base64_text(b"<html>" * 30), "the image in row 2 of DocVQA_VAL.tsv is no picture"),
    ],
)
def test_a_bad_picture_is_the_problem_of_its_sample_alone(tmp_path, image, problem):
    samples = load(tmp_path, [document(1), document(2, image), document(3)])
    assert [sample.problem is None for sample in samples] == [True, False, True]
    assert problem in samples[1].problem


def test_a_row_that_borrows_a_bad_picture_has_its_problem_too(tmp_path):
    samples = load(tmp_path, [document(1, "!" * 100), document(2, "1"), document(3)])
    assert [sample.problem is None for sample in samples] == [False, False, True]


CELL = st.text(st.sampled_from('""\t\n ab,é'), max_size=9)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6))
def test_fields_are_split_as_pandas_writes_them(rows, tmp_path_factory):
    """Tabs, newlines and quotes inside quoted fields; Python's own csv writer is the oracle."""
    path = tmp_path_factory.mktemp("tsv") / "any.tsv"
    names = ("one", "two", "three")
    # A field to begin with, so that no row is an empty line.
    write_tsv(path, [{"number": number} | dict(zip(names, row, strict=True)) for number, row in enumerate(rows)])
    table = tsv_table(path)
    assert table.columns == ("number", *names)
    read = [tuple(row.values[name] or "" for name in names) for row in table.read(())]
    assert read == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'1\tx\t"never closed\tb\n2\tx\ty\tz\n', r"row 1, column 'index': found a quote that is never closed"),
        (b"1\tx\ty\t['a']\n2\tx\ty\n", r"row 2, column 'answer': found 3 fields in the row; expected 4"),
        (b"1\tx\ty\t['a']\n2\tx\ty\tz\tz\n", r"row 2, column 'answer': found 5 fields in the row; expected 4"),
        (b"1\tx\ty\t['a']\n2\tx\t\xff\xfe\tz\n", r"row 2, column 'question': found bytes that are no UTF-8"),
        (b"1\tx\ty\t['a']\n2\tx\t\t['a']\n", r"row 2, column 'question': found nothing; expected a text"),
        (b"1\tx\ty\t['a']\n\tx\ty\t['a']\n", r"row 2, column 'index': found nothing"),
        (b"1\tx\ty\t['a']\n1\tx\ty\t['a']\n", r"row 2, column 'id': found '1' for a second time"),
        (b"1\tx\ty\t['a]\n", r"row 1, column 'answer': found \"\['a\]\"; expected a list written as Python writes it"),
        (b"1\tx\ty\t[[1]]\n", r"row 1, column 'answer': found a list with a list; expected a list of texts"),
    ],
)
def test_a_damaged_file_is_one_error_that_names_file_row_and_column(tmp_path, content, said):
    path = tmp_path / "DocVQA_VAL.tsv"
    path.write_bytes(b"index\timage\tquestion\tanswer\n" + content)
    with pytest.raises(VLMError, match=r"^DocVQA_VAL\.tsv, " + said) as caught:
        list(DOCVQA.load(path))
    assert str(tmp_path) not in caught.value.report


def test_a_file_that_changes_under_a_run_is_an_error_and_no_other_picture(tmp_path):
    samples = load(tmp_path, [document(1), document(2)])
    write_tsv(tmp_path / "DocVQA_VAL.tsv", [document(8), document(9)])
    with pytest.raises(VLMError, match=r"DocVQA_VAL\.tsv has changed"):
        samples[1].images[0].read()
    (tmp_path / "DocVQA_VAL.tsv").unlink()
    with pytest.raises(VLMError, match=r"DocVQA_VAL\.tsv has changed"):
        samples[0].images[0].read()


def test_of_several_files_the_one_called_after_the_task_is_taken(tmp_path):
    write_tsv(tmp_path / "DocVQA_VAL.tsv", [document(1)])
    write_tsv(tmp_path / "InfoVQA_VAL.tsv", [document(2)])
    write_tsv(tmp_path / "TextVQA_VAL.tsv", [document(3)])
    for name, expected in (("docvqa", "1"), ("infovqa", "2"), ("textvqa", "3")):
        assert [sample.id for sample in tasks.find(name).load(tmp_path)] == [expected]


def test_files_of_other_names_are_read_together(tmp_path):
    write_tsv(tmp_path / "first.tsv", [document(1)])
    write_tsv(tmp_path / "second.tsv", [document(2)])
    assert [sample.id for sample in DOCVQA.load(tmp_path)] == ["1", "2"]


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path):
    path = write_tsv(tmp_path / "DocVQA_VAL.tsv", [document(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [sample.id for sample in DOCVQA.load(path)] == ["1"]


def test_a_letter_without_a_text_keeps_its_place(tmp_path):
    """One row of AI2D_TEST has nothing in column A."""
    row = {"index": 83301, "image": base64_text(picture(1)), "question": "Which?", "A": "", "B": "x", "C": "y", "D": ""}
    (sample,) = AI2D.load(write_tsv(tmp_path / "AI2D_TEST.tsv", [row | {"answer": "C"}]))
    assert sample.options == ("", "x", "y")
    assert sample.targets == ("C",)
    assert "\nB. x\nC. y" in AI2D.prompt(sample).text()
    assert "A." not in AI2D.prompt(sample).text()
    with pytest.raises(VLMError, match=r"row 1, column 'answer': found 'A'"):
        list(AI2D.load(write_tsv(tmp_path / "AI2D_TEST.tsv", [row | {"answer": "A"}])))
