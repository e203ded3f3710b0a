"""Of the data that lie in a folder a task takes the part, the half and the variant that are meant, never a mixture."""

import pytest

from eval import tasks
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
from tests.eval_layouts import LETTERS, PICTURES
from vlm.errors import VLMError


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
        _, write, _ = PICTURES["lmms-lab/ChartQA"]
        write(tmp_path / part).rename(tmp_path / part / "0000.parquet")
    assert [sample.fields["part"] for sample in tasks.find("chartqa").load(tmp_path)] == ["test"]
    assert [sample.fields["part"] for sample in tasks.find("chartqa").load(tmp_path, split="train")] == ["train"]


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
    _, write, _ = PICTURES["lmms-lab/ai2d"]
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
