"""Parquet files: rows and pictures come as they were written, whatever the order, with flat memory."""

import pickle
import random
import threading

import pyarrow as pa
import pytest

from eval import tasks
from tests.eval_data_sets import embedded, picture, write_parquet
from vlm.errors import VLMError

CHARTQA = tasks.find("chartqa")


def chart_row(number: int, **more) -> dict:
    row = {"image": embedded(number), "question": f"Question {number}?", "answer": str(number)}
    return row | {"type": "human_test" if number % 2 else "augmented_test"} | more


ORDER = (*range(50), 3)
"""Fifty charts, of which number 3 comes twice."""


@pytest.fixture
def charts(tmp_path):
    """A file with these charts in groups that are read in several steps."""
    rows = [chart_row(number, question=f"Question {place}?") for place, number in enumerate(ORDER)]
    return write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows, group=40)


def test_rows_come_in_order_with_the_pictures_that_were_written(charts):
    samples = list(CHARTQA.load(charts.parent.parent))
    assert [sample.question for sample in samples] == [f"Question {place}?" for place in range(51)]
    assert [sample.images[0].read() for sample in samples] == [picture(number) for number in ORDER]
    assert samples[3].cluster == samples[50].cluster
    assert len({sample.cluster for sample in samples}) == 50


@pytest.mark.parametrize("seed", range(4))
def test_pictures_are_read_in_any_order(charts, seed):
    samples = list(CHARTQA.load(charts))
    order = list(range(51)) * 2
    random.Random(seed).shuffle(order)
    for place in order:
        assert samples[place].images[0].read() == picture(ORDER[place])


def test_pictures_are_read_by_threads_and_in_another_process(charts):
    samples = list(CHARTQA.load(charts))
    wrong = []

    def read(step):
        for place in range(0, 50, step):
            if samples[place].images[0].read() != picture(place):
                wrong.append(place)

    threads = [threading.Thread(target=read, args=(step,)) for step in (1, 2, 3, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    copies = pickle.loads(pickle.dumps(samples))
    assert [sample.images[0].read() for sample in copies] == [picture(number) for number in ORDER]


def test_no_more_than_a_few_rows_are_held_at_a_time(tmp_path):
    """Of 200 pictures, 10 MB, a fraction is allocated at a time, and samples hold no picture."""
    noise = random.Random(0)
    rows = [
        chart_row(number, image={"bytes": picture(number) + noise.randbytes(50_000), "path": None})
        for number in range(200)
    ]
    path = write_parquet(tmp_path / "test.parquet", rows, group=20)
    del rows
    before, most, samples = pa.total_allocated_bytes(), 0, []
    for sample in CHARTQA.load(path):
        samples.append(sample)
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 5_000_000
    assert len(pickle.dumps(samples)) < 200 * 1000


def test_only_the_columns_of_the_task_are_read(tmp_path):
    rows = [chart_row(number, junk="x" * 100_000) for number in range(20)]
    path = write_parquet(tmp_path / "test.parquet", rows, types={"junk": pa.string()})
    before = pa.total_allocated_bytes()
    for _ in CHARTQA.load(path):
        assert pa.total_allocated_bytes() - before < 200_000


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (None, "row 3 of test.parquet has no image"),
        ({"bytes": None, "path": None}, "row 3 of test.parquet has no image"),
        ({"bytes": b"", "path": None}, "is empty"),
        ({"bytes": b"<html>not found</html>", "path": None}, "the image in row 3 of test.parquet is no picture"),
        ({"bytes": None, "path": "gone.png"}, "image file 'gone.png' is missing"),
        ({"bytes": b"version https://git-lfs.github.com/spec/v1\n", "path": None}, "git lfs pull"),
    ],
)
def test_a_bad_picture_is_the_problem_of_its_sample_alone(tmp_path, cell, problem):
    rows = [chart_row(number) for number in range(5)]
    rows[2]["image"] = cell
    samples = list(CHARTQA.load(write_parquet(tmp_path / "test.parquet", rows)))
    assert [sample.problem is None for sample in samples] == [True, True, False, True, True]
    assert problem in samples[2].problem
    assert samples[2].question == "Question 2?"
    assert samples[3].images[0].read() == picture(3)


def test_pictures_that_lie_beside_the_file_are_found(tmp_path):
    (tmp_path / "3.png").write_bytes(picture(3))
    rows = [chart_row(3, image={"bytes": None, "path": "3.png"})]
    (sample,) = CHARTQA.load(write_parquet(tmp_path / "test.parquet", rows))
    assert sample.problem is None
    assert sample.images[0].read() == picture(3)


def damage(path, place: float):
    """Overwrite 200 bytes at a relative place."""
    content = bytearray(path.read_bytes())
    start = int(place * len(content))
    content[start : start + 200] = b"\xee" * 200
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b""), "too short"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cut off"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3), "git lfs pull"),
        (lambda path: path.write_bytes(b"{}" * 100), "no parquet file"),
        (lambda path: damage(path, 0.9), "footer is damaged"),
    ],
)
def test_a_file_that_cannot_be_opened_is_named(charts, spoil, said):
    spoil(charts)
    with pytest.raises(VLMError, match=r"^test-00000-of-00001\.parquet") as caught:
        CHARTQA.load(charts.parent)
    assert said in caught.value.message
    assert str(charts.parent) not in caught.value.message


def test_a_damaged_page_is_one_error_that_names_file_row_and_column(tmp_path):
    rows = [chart_row(number, question=f"{number}" * 400) for number in range(40)]
    path = write_parquet(tmp_path / "test.parquet", rows, group=10)
    import pyarrow.parquet as pq

    column = pq.ParquetFile(path).metadata.row_group(2).column(2)
    assert column.path_in_schema == "question"
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xee" * column.total_compressed_size
    path.write_bytes(content)
    samples = CHARTQA.load(path)
    assert sum(1 for _ in (next(samples) for _ in range(20))) == 20
    with pytest.raises(VLMError, match=r"^test\.parquet, row 21, column 'question': found a damaged page"):
        next(samples)


def test_a_damaged_page_inside_a_group_is_named_by_the_row_from_which_on_nothing_could_be_read(tmp_path):
    rows = [chart_row(number, question=f"Question {number}?") for number in range(100)]
    small_pages = {"write_batch_size": 10, "data_page_size": 100, "use_dictionary": False, "compression": "none"}
    path = write_parquet(tmp_path / "test.parquet", rows, **small_pages)
    content = path.read_bytes()
    place = content.index(b"Question 70?")
    path.write_bytes(content[: place - 60] + b"\xee" * 60 + content[place:])
    samples = CHARTQA.load(path)
    assert [next(samples).targets for _ in range(64)] == [(str(number),) for number in range(64)]
    with pytest.raises(VLMError, match=r"^test\.parquet, row 65, column 'question': found a damaged page"):
        next(samples)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_damaged_there_is_one_error_or_none(tmp_path, seed):
    rows = [chart_row(number, question=f"Question {number}? " * 3) for number in range(20)]
    path = write_parquet(tmp_path / "test.parquet", rows, group=7)
    content, dice = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(dice.choice([1, 3, 10])):
        place = dice.randrange(len(content))
        content[place : place + 4] = dice.randbytes(4)
    path.write_bytes(content[: dice.randrange(len(content))] if seed % 5 == 0 else content)
    message = "test.parquet"
    try:
        for sample in CHARTQA.load(path):
            assert sample.problem or sample.images[0].read()
    except VLMError as error:
        message = error.message
    assert message.startswith("test.parquet")


def test_a_text_that_is_no_utf8_names_file_row_and_column(tmp_path):
    rows = [chart_row(number, question=f"Frage {number}?") for number in range(40)]
    path = write_parquet(tmp_path / "test.parquet", rows, compression="none")
    path.write_bytes(path.read_bytes().replace(b"Frage 36?", b"Frag\xff 36?"))
    with pytest.raises(VLMError, match=r"^test\.parquet, row 37, column 'question': found bytes that are no UTF-8"):
        list(CHARTQA.load(path))


def test_a_file_that_changes_under_a_run_is_an_error_and_no_other_picture(tmp_path):
    path = write_parquet(tmp_path / "test.parquet", [chart_row(number) for number in range(4)])
    samples = list(CHARTQA.load(path))
    write_parquet(path, [chart_row(number + 50) for number in range(4)])
    with pytest.raises(VLMError, match=r"test\.parquet has changed while it was in use"):
        samples[1].images[0].read()
    write_parquet(path, [chart_row(1)])
    with pytest.raises(VLMError, match="has changed"):
        samples[3].images[0].read()


def test_a_missing_file_of_several_is_named(tmp_path):
    for number in (0, 2):
        write_parquet(tmp_path / f"test-{number:05}-of-00003.parquet", [chart_row(number)])
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [chart_row(9)])
    with pytest.raises(VLMError, match=r"1 of 3 files are missing, the first test-00001-of-00003") as caught:
        CHARTQA.load(tmp_path)
    assert "fetch the rest" in caught.value.message
    (alone,) = CHARTQA.load(tmp_path / "test-00002-of-00003.parquet")
    assert alone.question == "Question 2?"


def test_a_damaged_file_of_a_part_that_is_not_wanted_is_no_error(tmp_path):
    write_parquet(tmp_path / "test.parquet", [chart_row(1)])
    (tmp_path / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert len(list(CHARTQA.load(tmp_path))) == 1
    with pytest.raises(VLMError, match=r"train\.parquet: it is a pointer"):
        CHARTQA.load(tmp_path, split="train")


def test_two_snapshots_of_the_hubs_cache_are_not_mixed(tmp_path):
    for name in ("aaa", "bbb"):
        write_parquet(tmp_path / "snapshots" / name / "data" / "test.parquet", [chart_row(1)])
    with pytest.raises(VLMError, match="2 snapshots"):
        CHARTQA.load(tmp_path)
    assert len(list(CHARTQA.load(tmp_path / "snapshots" / "aaa"))) == 1


def test_without_pyarrow_the_error_says_what_to_install(charts, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(VLMError, match="needs pyarrow, which is not installed; run: pip install pyarrow"):
        CHARTQA.load(charts)
