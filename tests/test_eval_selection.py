"""Which samples a run takes: by limit, by id, and with empty pictures."""

import io
import json
from dataclasses import replace

import pytest
from PIL import Image

from eval.run.runner import RunSettings, run
from eval.run.selection import Selection, select
from eval.tasks import find
from tests.eval_data_sets import base64_text, embedded, write_parquet, write_tsv
from tests.eval_data_sets import picture as invented_picture
from tests.eval_models import EchoBackend, question, write_chart_questions
from vlm import VLMError

NUM = 15


@pytest.fixture
def settings(tmp_path) -> RunSettings:
    return RunSettings(data={"chartqa": write_chart_questions(tmp_path / "data", NUM)}, out=tmp_path / "run")


def records(out) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def ids(out) -> list[str]:
    return [record["id"] for record in records(out)]


def test_samples_are_chosen_by_limit_and_by_id(settings):
    run(replace(settings, selection=Selection(limit=5)), EchoBackend())
    assert sorted(ids(settings.out)) == [f"q{number}" for number in range(5)]
    out = settings.out.parent / "two"
    run(replace(settings, out=out, selection=Selection(samples=("q7", "q3"))), EchoBackend())
    assert sorted(ids(out)) == ["q3", "q7"]


def test_an_id_that_is_not_there_or_there_twice_is_refused(settings):
    with pytest.raises(VLMError, match="no sample has the id q99"):
        run(replace(settings, selection=Selection(samples=("q1", "q99"))), EchoBackend())
    write_chart_questions(settings.data["chartqa"].parent, NUM, changed={3: {"id": "q1"}})
    with pytest.raises(VLMError, match="q1"):
        run(settings, EchoBackend())


def test_two_samples_of_one_id_are_refused_whoever_loads_them():
    samples = [question(number, id=name).sample for number, name in enumerate(["q1", "q2", "q2"])]
    with pytest.raises(VLMError, match="two samples of t have the id 'q2'"):
        select({"t": samples}, Selection())


def test_blank_images_have_the_size_of_the_real_ones_and_no_picture(settings):
    from eval.run.selection import select

    samples = find("chartqa").load(settings.data["chartqa"])
    (blank, *_) = select({"chartqa": samples}, Selection(blank_images=True))["chartqa"]
    with Image.open(io.BytesIO(blank.images[0].read())) as shown:
        assert shown.size == Image.open(settings.data["chartqa"].parent / "0.png").size
        assert shown.getcolors() == [(shown.width * shown.height, (255, 255, 255))]


def chosen(selection: Selection, *names: str) -> list[str]:
    samples = [question(number, id=name).sample for number, name in enumerate(names)]
    return [sample.id for sample in select({"t": samples}, selection)["t"]]


def test_an_id_with_a_comma_is_one_where_a_sample_has_it():
    assert chosen(Selection(samples=("a,b",)), "a", "b", "a,b") == ["a,b"]
    assert chosen(Selection(samples=(" c , a ", "d,e", "")), "a", "b", "c", "d,e") == ["a", "c", "d,e"]
    assert Selection(samples=("c , a", "d,e")).described({"a", "c", "d,e"})["samples"] == ["c", "a", "d,e"]


def test_ids_are_looked_for_before_the_limit_is_reached():
    assert chosen(Selection(samples=("c", "b"), limit=1), "a", "b", "c") == ["b"]
    with pytest.raises(VLMError, match="no sample has the id d"):
        chosen(Selection(samples=("a", "d"), limit=1), "a", "b", "c")


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_the_key_of_a_record_tells_an_empty_picture_from_the_real_one(tmp_path, kind):
    row = {"question": "?", "answer": "x"}
    if kind == "tsv":
        row |= {"index": "1", "image": base64_text(invented_picture(1)), "split": "human"}
        data = write_tsv(tmp_path / "ChartQA_TEST.tsv", [row])
    else:
        data = write_parquet(tmp_path / "test.parquet", [row | {"image": embedded(1), "type": "human"}])
    for name, is_blank in (("seen", False), ("blank", True)):
        selection = Selection(blank_images=is_blank)
        run(RunSettings(data={"chartqa": data}, out=tmp_path / name, selection=selection), EchoBackend())
    (seen,), (blank,) = records(tmp_path / "seen"), records(tmp_path / "blank")
    assert seen["images"] == blank["images"]
    assert seen["key"] != blank["key"]
