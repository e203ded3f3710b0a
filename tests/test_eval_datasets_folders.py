"""The layouts of ChartQA's and AI2D's authors, and folders that hold something else."""

import io
import json

import pytest
from PIL import Image

from eval import tasks
from tests.eval_data_sets import (
    base64_text,
    embedded,
    picture,
    write_ai2d,
    write_chartqa,
    write_jsonl,
    write_parquet,
    write_pictures,
    write_tsv,
)
from vlm.errors import VLMError

CHARTQA, AI2D, DOCVQA = (tasks.find(name) for name in ("chartqa", "ai2d", "docvqa"))


# ChartQA


def test_a_chartqa_folder_has_both_halves(tmp_path):
    samples = list(CHARTQA.load(write_chartqa(tmp_path)))
    assert [(sample.fields["split"], sample.question) for sample in samples] == [
        (half, f"{half} question {number}?") for half in ("augmented", "human") for number in range(3)
    ]
    assert samples[4].targets == ("1",)
    assert samples[4].images[0].id == samples[1].cluster == "test_1.png"
    assert samples[4].images[0].read() == picture(2)
    assert samples[4].fields == {"part": "test", "split": "human"}


@pytest.mark.parametrize("place", ["", "ChartQA Dataset", "chartqa"])
def test_test_is_taken_of_several_parts_wherever_they_lie(tmp_path, place):
    for part in ("train", "val", "test"):
        write_chartqa(tmp_path / place / part, part)
    assert {sample.fields["part"] for sample in CHARTQA.load(tmp_path)} == {"test"}
    assert {sample.fields["part"] for sample in CHARTQA.load(tmp_path, split="val")} == {"validation"}
    found = [(s.fields["part"], s.fields["split"]) for s in CHARTQA.load(tmp_path, split="val,train,human")]
    assert found == [("train", "human")] * 3 + [("validation", "human")] * 3


def test_without_test_the_part_has_to_be_said(tmp_path):
    for part in ("train", "dev"):
        write_chartqa(tmp_path / part, part)
    with pytest.raises(VLMError, match=r"parts dev, train and not test, .*for example split='dev'"):
        CHARTQA.load(tmp_path)
    assert len(list(CHARTQA.load(tmp_path / "dev"))) == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{}", r"row 1, column '4': found no JSON"),
        ('[\n{"a": 1},\n]', r"row 3, column '1': found no JSON"),
        ('{"data": 3}', r"row 1, column '1': found an int; expected a list"),
        ("[3]", r"row 1, column 'query': found an int"),
        ('[{"query": "a", "label": "b"}]', r"row 1, column 'imgname': found nothing"),
        ('[{"imgname": "test_0.png", "label": "b"}]', r"row 1, column 'query': found nothing"),
        ('[{"imgname": "test_0.png", "query": "a", "label": null}]', r"row 1, column 'label': found nothing"),
        ('[{"imgname": "test_0.png", "query": "a", "label": {}}]', r"row 1, column 'label': found a dict"),
        ('[{"imgname": "test_0.png", "query": "a", "label": []}]', r"row 1, column 'label': found no answer"),
    ],
)
def test_a_damaged_questions_file_names_file_row_and_column(tmp_path, content, said):
    write_chartqa(tmp_path)
    (tmp_path / "test_human.json").write_text(content)
    with pytest.raises(VLMError, match=r"^test_human\.json, " + said) as caught:
        list(CHARTQA.load(tmp_path))
    assert str(tmp_path) not in caught.value.report


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "image file 'test_1.png' is missing"),
        (lambda path: path.write_bytes(b""), "image file 'test_1.png' is empty"),
        (lambda path: path.write_bytes(b"\0" * 1000), "image file 'test_1.png' is no picture"),
        (lambda path: (path.unlink(), path.mkdir()), "image file 'test_1.png' cannot be read"),
    ],
)
def test_a_bad_chart_is_the_problem_of_its_samples_alone(tmp_path, spoil, problem):
    write_chartqa(tmp_path)
    spoil(tmp_path / "png" / "test_1.png")
    samples = list(CHARTQA.load(tmp_path))
    assert [sample.problem for sample in samples] == [None, problem, None] * 2
    assert samples[1].images[0].id == "test_1.png"


def test_a_file_that_goes_after_loading_is_an_error_when_it_is_read(tmp_path):
    sample = next(CHARTQA.load(write_chartqa(tmp_path)))
    (tmp_path / "png" / "test_0.png").unlink()
    with pytest.raises(VLMError, match=r"image file 'test_0\.png' cannot be read \(No such file") as caught:
        sample.images[0].read()
    assert str(tmp_path) not in caught.value.message


# AI2D


def test_ai2d_takes_test_with_opaque_letters(tmp_path):
    first, second, third = AI2D.load(write_ai2d(tmp_path))
    assert (first.id, first.question, first.targets) == ("1.png-0", "What is A?", ("B",))
    assert first.options == ("root", "leaf", "", "b")
    assert first.fields == {"split": "test", "variant": "opaque", "abc_label": True, "option_is_label": True}
    assert second.fields["abc_label"] is False
    assert second.targets == ("D",)
    assert second.fields["option_is_label"] is False
    assert third.id == "3.png-0"
    assert first.cluster == second.cluster == "1.png", "one diagram, with letters and without"
    assert first.images[0].id != second.images[0].id
    (train,) = AI2D.load(tmp_path, split="train")
    assert train.id == "2.png-0"


def test_letters_hide_the_words_or_let_them_be_read_or_are_not_there(tmp_path):
    write_ai2d(tmp_path)
    navy, pictures = (0, 0, 128), {}
    for variant in ("opaque", "transparent", "raw"):
        lettered, plain, _ = AI2D.load(tmp_path, variant=variant)
        assert lettered.fields["variant"] == plain.fields["variant"] == variant
        assert plain.images[0].read() == (tmp_path / "images" / "1.png").read_bytes()
        pictures[variant] = Image.open(io.BytesIO(lettered.images[0].read())).convert("RGB")
        assert lettered.images[0].id == ("1.png" if variant == "raw" else f"1.png@{variant}")
    opaque, transparent, raw = pictures.values()
    assert {raw.getpixel((x, y)) for x in range(60) for y in range(40)} == {navy}
    # Outside the box nothing changes, and a box without height is left out.
    assert opaque.getpixel((45, 20)) == opaque.getpixel((52, 35)) == transparent.getpixel((52, 35)) == navy
    inside = [(x, y) for x in range(10, 41) for y in range(10, 31)]
    assert navy not in {opaque.getpixel(place) for place in inside}
    assert opaque.getpixel((10, 10)) == (255, 255, 255)
    dark = sum(sum(opaque.getpixel(place)) < 200 for place in inside)
    assert 40 < dark < 400, "a letter as large as the box"
    assert transparent.getpixel((39, 29)) == (127, 127, 191)
    corner = [transparent.getpixel((x, y)) for x in range(16) for y in range(16)]
    assert (0, 0, 0) in corner
    assert (255, 255, 255) in corner


@pytest.mark.parametrize(
    "annotation",
    [
        "{}",
        "[",
        '{"text": {"T": {"rectangle": [[1, 2]], "replacementText": "A"}}}',
        '{"text": {"T": {"rectangle": [[1, 2], [3, 1e999]], "replacementText": "A"}}}',
        '{"text": {"T": {"rectangle": [[1, 2], [3, 1e9]], "replacementText": "A"}}}',
        '{"text": {"T": {"rectangle": [[1, 2], [3, 4, 5]], "replacementText": "A"}}}',
        '{"text": {"T": {"rectangle": [[1, 2], [3, 4]], "replacementText": 7}}}',
    ],
)
def test_an_annotation_that_says_nothing_concerns_its_picture_alone(tmp_path, annotation):
    write_ai2d(tmp_path)
    (tmp_path / "annotations" / "1.png.json").write_text(annotation)
    lettered, plain, other = AI2D.load(tmp_path)
    with pytest.raises(VLMError, match=r"1\.png\.json does not say where letters go"):
        lettered.images[0].read()
    assert plain.images[0].read()
    assert other.images[0].read()


def test_an_annotation_that_is_missing_concerns_its_samples_alone(tmp_path):
    write_ai2d(tmp_path)
    (tmp_path / "annotations" / "1.png.json").unlink()
    samples = list(AI2D.load(tmp_path))
    assert [sample.problem for sample in samples] == ["annotation file '1.png.json' is missing", None, None]
    assert [sample.problem for sample in AI2D.load(tmp_path, variant="raw")] == [None] * 3


def test_a_diagram_that_cannot_be_decoded_is_an_image_error(tmp_path):
    write_ai2d(tmp_path)
    (tmp_path / "images" / "1.png").write_bytes(picture(1)[:40])
    sample = next(AI2D.load(tmp_path))
    with pytest.raises(VLMError, match="the diagram: the PNG ") as caught:
        sample.images[0].read()
    assert caught.value.code == "image_truncated"


def test_without_the_test_ids_train_and_test_are_not_mixed(tmp_path):
    write_ai2d(tmp_path / "ai2d")
    (tmp_path / "ai2d" / "ai2d_test_ids.csv").rename(tmp_path / "ai2d_test_ids.csv")
    assert len(list(AI2D.load(tmp_path))) == 3, "they may lie beside the folder"
    (tmp_path / "ai2d_test_ids.csv").unlink()
    with pytest.raises(VLMError, match=r"not ai2d_test_ids\.csv; expected it beside them"):
        AI2D.load(tmp_path)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("{", r"row 1, column '2': found no JSON"),
        ("[]", r"row 1, column 'imageName'"),
        ('{"imageName": "1.png"}', r"row 1, column 'questions'"),
        ('{"imageName": "1.png", "questions": {"What?": 3}}', r"row 1, column 'questions': found an int"),
    ],
)
def test_a_damaged_page_names_file_row_and_column(tmp_path, page, said):
    write_ai2d(tmp_path)
    (tmp_path / "questions" / "1.png.json").write_text(page)
    with pytest.raises(VLMError, match=r"^1\.png\.json, " + said):
        list(AI2D.load(tmp_path))


def test_an_answer_that_is_no_option_names_file_row_and_column(tmp_path):
    write_ai2d(tmp_path)
    path = tmp_path / "questions" / "1.png.json"
    for wrong in (4, -1, 2, None, "x"):
        page = json.loads(path.read_text())
        page["questions"]["What is A?"]["correctAnswer"] = wrong
        path.write_text(json.dumps(page))
        with pytest.raises(VLMError, match=r"^1\.png\.json, row 1, column 'correctAnswer': found"):
            list(AI2D.load(tmp_path))


# What is not recognised


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), "holds nothing"),
        (("notes.txt", "a.png", "b.png"), "holds 2 .png, 1 .txt"),
        (("x/a.csv", "y/b.csv", ".git/c"), "holds x/, y/, 2 .csv"),
        (("human.json", "png.txt"), "holds 1 .json, 1 .txt"),
    ],
)
def test_an_unknown_folder_gets_an_error_that_says_what_was_found_and_what_is_read(tmp_path, names, found):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(VLMError) as caught:
        CHARTQA.load(tmp_path)
    message = caught.value.message
    assert found in message
    assert str(tmp_path) not in message
    for accepted in ("Hugging Face parquet", "VLMEvalKit TSV", "png/ and *_human.json", "JSON lines"):
        assert accepted in message
    for columns in ("image, question, answer, type", "image, query, label", "index, image"):
        assert columns in caught.value.report


def test_other_columns_are_shown(tmp_path):
    write_parquet(tmp_path / "data.parquet", [{"picture": embedded(1), "text": "a", "label": 3}])
    with pytest.raises(
        VLMError, match=r"data\.parquet has the columns picture, text, label; expected ChartQA with image, "
    ):
        CHARTQA.load(tmp_path)


def test_the_same_data_in_two_ways_is_refused(tmp_path):
    write_chartqa(tmp_path)
    write_tsv(
        tmp_path / "ChartQA_TEST.tsv",
        [{"index": 1, "image": base64_text(picture(1)), "question": "?", "answer": "1", "split": "human"}],
    )
    with pytest.raises(VLMError, match=r"holds ChartQA in two ways, as in .*tsv.* and .*folder"):
        CHARTQA.load(tmp_path)
    assert len(list(CHARTQA.load(tmp_path / "ChartQA_TEST.tsv"))) == 1


@pytest.mark.parametrize("name", ["nothing", "nothing.parquet"])
def test_a_path_to_nothing_is_said_to_be_that(tmp_path, name):
    with pytest.raises(VLMError, match=f"the data '{name}' is not there"):
        CHARTQA.load(tmp_path / name)


def test_a_file_of_another_kind_is_not_opened(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x")
    with pytest.raises(VLMError, match=r"a\.csv is no file of a known kind; expected ChartQA as"):
        CHARTQA.load(tmp_path / "a.csv")


def test_a_broken_file_of_another_format_does_not_matter(tmp_path):
    write_chartqa(tmp_path)
    for name in ("log.jsonl", "table.tsv", "x.parquet"):
        (tmp_path / name).write_bytes(b"\xff{" * 10)
    assert len(list(CHARTQA.load(tmp_path))) == 6
    (tmp_path / "png").rename(tmp_path / "charts")
    with pytest.raises(VLMError, match=r"x\.parquet: it is no parquet file"):
        CHARTQA.load(tmp_path)


def test_a_folder_where_a_file_should_be_is_said_to_be_unreadable(tmp_path):
    write_chartqa(tmp_path)
    (tmp_path / "test_human.json").unlink()
    (tmp_path / "test_human.json").mkdir()
    (tmp_path / "q.jsonl").mkdir()
    with pytest.raises(VLMError, match=r"^test_human\.json cannot be read \(Is a directory\)"):
        list(CHARTQA.load(tmp_path))


def test_one_folder_can_hold_the_data_of_several_tasks(tmp_path):
    write_chartqa(tmp_path / "chartqa")
    write_ai2d(tmp_path / "ai2d")
    write_pictures(tmp_path / "docvqa", "1.png")
    write_jsonl(tmp_path / "docvqa" / "q.jsonl", [{"image": "1.png", "question": "?", "answer": "x"}])
    assert [len(list(task.load(tmp_path))) for task in (CHARTQA, AI2D, DOCVQA)] == [6, 3, 1]
