"""The samples of a report: runs side by side, what each row shows, and by what it can be grouped."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.report.facets import answer_kind, facets, in_order, num_tiles, question_word
from eval.report.run import read_runs
from eval.report.samples import side_by_side
from tests.eval_data_sets import write_ai2d
from tests.eval_report_pages import Report
from tests.eval_reports import write_questions, write_run, write_two_runs
from vision_encoder.tiling import choose_canvas


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_two_runs(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def one(folder) -> Report:
    return Report(folder / "one.html", folder / "first")


@pytest.fixture(scope="module")
def both(folder) -> Report:
    return Report(folder / "both.html", folder / "first", folder / "second")


# Side by side


def test_runs_are_put_side_by_side_sample_by_sample(both):
    by_id = {row["id"]: row for row in both.rows["rows"]}
    assert len(by_id) == len(both.rows["rows"]) == 12
    assert [outcome.get("reply") for outcome in by_id["q5"]["runs"]] == ["15", "0"]
    assert by_id["q3"]["runs"][0]["error"] == "the picture cannot be read [image_corrupt]"
    assert both.about["runs"] == ["first", "second"]


def test_a_sample_that_one_run_lacks_is_null_there(folder, tmp_path):
    write_run(tmp_path / "part", folder / "data")
    lines = (tmp_path / "part" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part" / "predictions.jsonl").write_text("".join(lines[:4]))
    report = Report(tmp_path / "report.html", folder / "first", tmp_path / "part")
    assert [row["runs"][1] is None for row in report.rows["rows"]] == [False] * 4 + [True] * 8
    assert re.search(r"not answered yet</dt><dd[^>]*>8<", report.html)


def test_another_question_under_the_same_id_is_another_sample(folder, tmp_path):
    changed = write_questions(tmp_path / "data", 12, changed={0: {"question": "Something else?"}})
    report = Report(tmp_path / "report.html", folder / "first", write_run(tmp_path / "run", changed))
    assert [row["id"] for row in report.rows["rows"]].count("q0") == 2
    assert "has another question in each run" in report.elements.text()


def test_the_comparison_is_shown(both):
    text = " ".join(both.elements.text().split())
    assert "Compared: second against first" in text
    assert "On the 11 samples that both answered." in text


def test_runs_are_called_by_the_shortest_names_that_differ(tmp_path):
    data = write_questions(tmp_path / "data", 3)
    paths = [write_run(tmp_path / name, data) for name in ("a/x", "b/x")]
    assert [run.name for run in read_runs(paths)] == ["a/x", "b/x"]
    assert [run.name for run in read_runs(paths[:1])] == ["x"]
    assert [run.name for run in read_runs([paths[0], paths[0]])] == ["x", "x (2)"]


def test_the_variant_of_the_data_is_told(one, tmp_path):
    run = write_run(tmp_path / "run", write_ai2d(tmp_path / "ai2d"), task="ai2d")
    told = Report(tmp_path / "report.html", run).elements.text()
    assert "variantopaque" in told
    assert "variantopaque" not in one.elements.text()


def test_two_tasks_lie_in_one_report(folder, tmp_path):
    choices = write_run(tmp_path / "ai2d", write_ai2d(tmp_path / "data"), task="ai2d")
    report = Report(tmp_path / "report.html", folder / "first", choices)
    assert list(report.about["scorers"]) == ["ai2d", "chartqa"]
    assert {row["task"] for row in report.rows["rows"]} == {"ai2d", "chartqa"}
    variant = report.about["pictures"][0]
    assert (variant["name"], variant["problem"], variant["size"]) == ("1.png@opaque", None, [40, 60])
    told = report.elements.text()
    assert "ai2d has no sample of this task and is not compared." in told
    assert "first has no sample of this task and is not compared." in told


# What a sample shows


def test_a_row_holds_what_was_asked_and_what_came_of_it(one):
    by_id = {row["id"]: row for row in one.rows["rows"]}
    row, ours = by_id["q4"], one.about["scorers"]["chartqa"].index("ours")
    outcome = row["runs"][0]
    assert (row["question"], row["targets"]) == ("How many in year 4?", ["14"])
    assert (outcome["reply"], outcome["finish"], outcome["confidence"]) == ("FINAL ANSWER: 14", "stop", 0.6)
    value, span = outcome["verdicts"][ours]
    assert (value, outcome["extracted"][span]) == (1.0, "14")
    assert by_id["q2"]["runs"][0]["verdicts"][ours] == [0.0, -1, "unparsed"]


def test_the_prompt_is_whole(folder, one):
    record = json.loads((folder / "first" / "predictions.jsonl").read_text().splitlines()[7])
    prompt = one.rows["rows"][7]["runs"][0]["prompt"]
    assert "\n".join(one.rows["lines"][line] for line in prompt) == record["prompt"]


@pytest.mark.parametrize(
    ("targets", "options", "kind"),
    [
        (("2014",), (), "year"),
        (("14",), (), "number"),
        (("-1,200.5",), (), "number"),
        (("45%",), (), "percentage"),
        (("Yes",), (), "yes or no"),
        (("[a, b]",), (), "list"),
        (("Germany",), (), "text"),
        (("B",), (), "letter"),
        (("B",), ("root", "12"), "number"),
        (("C",), ("root", "12"), "letter"),
        (("3", "3", "three"), (), "number"),
        ((), (), None),
    ],
)
def test_the_kind_of_answer_is_told(targets, options, kind):
    assert answer_kind(targets, options) == kind


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("How many people?", "how many"),
        ("How long is it?", "how"),
        ("WHICH one?", "which"),
        ("Is it red?", "is, does, ..."),
        ("In which year?", "other"),
        ("", "other"),
    ],
)
def test_the_way_of_asking_is_told(question, word):
    assert question_word(question) == word


@settings(deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(560, 4), (448, 4), (224, 9), (100, 1)]))
def test_tiles_are_counted_as_the_model_cuts_them(height, width, tiles):
    tile_size, max_tiles = tiles
    rows, cols = choose_canvas((height, width), tile_size=tile_size, max_tiles=max_tiles)
    assert num_tiles((height, width), tile_size=tile_size, max_tiles=max_tiles) == rows * cols


def test_facets_make_groups_and_name_no_samples(folder, both):
    found = both.about["facets"]
    # All pictures have one size, all answers are numbers: these make no groups. No field with 12 values of 12 does.
    assert found["split"] == {"values": ["augmented", "human"], "of": [0, 1] * 6}
    assert "tiles" not in found
    samples = side_by_side(read_runs([folder / "first"]))
    sizes = {name: (500, 400 + 900 * (name.id == "0.png")) for sample in samples for name in sample.pictures}
    assert facets(samples, sizes, {"tile_size": 560, "max_tiles": 4})["tiles"] == ["3"] * 3 + ["1"] * 9


def test_values_are_in_the_order_of_their_numbers():
    assert in_order(["10 cm", None, "9 cm", "b", "9 cm", "a", "²"]) == ["9 cm", "10 cm", "a", "b", "²"]
