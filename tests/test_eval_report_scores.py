"""The scores of a report: those of scores.json, of groups, of scorers that disagree, and calibration."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from eval.report.run import read_runs
from eval.report.samples import side_by_side
from eval.report.scores import calibration, disagreement, groups, scorers_of, scores
from eval.scorers import Verdict
from eval.scoring import score_folder
from eval.verdicts import verdicts
from tests.eval_report_pages import Report
from tests.eval_reports import write_two_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_two_runs(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def one(folder) -> Report:
    return Report(folder / "one.html", folder / "first")


def test_the_scores_are_those_of_scores_json(folder):
    expected = score_folder(folder / "first")["tasks"]["chartqa"]["scores"]
    found = scores(side_by_side(read_runs([folder / "first"])), 1)
    assert list(found) == list(expected)
    for name, (score,) in found.items():
        assert score.summary.mean == expected[name]["mean"]
        assert score.stderr == expected[name]["stderr"]
        assert list(score.summary.wilson) == expected[name]["wilson"]
        assert (score.summary.n, score.num_unparsed) == (expected[name]["n"], expected[name]["unparsed"])
        assert score.mean_errors_wrong == expected[name]["mean_errors_wrong"]


def test_the_table_shows_every_scorer_with_its_errors(folder, one):
    expected = score_folder(folder / "first")["tasks"]["chartqa"]["scores"]
    table = one.html[one.html.index('<table class="scores">') : one.html.index("</table>")]
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in table.split("<tr")[2:]]
    for row, (name, score) in zip(rows, expected.items(), strict=True):
        assert name in row
        for number in (score["mean"], score["stderr"], *score["wilson"], score["mean_errors_wrong"]):
            assert f"{100 * number:.1f}" in row
        assert str(score["n"]) in row


def _place(found, name: str) -> int:
    return next(place for place, names in enumerate(found.alike) if name in names)


def test_disagreement_is_counted_by_pairs(folder):
    found = disagreement(side_by_side(read_runs([folder / "first"])), 0)
    ours, pix2struct = (_place(found, name) for name in ("ours", "pix2struct"))
    # "FINAL ANSWER: 14" is right for ours and not for pix2struct; all else both see alike.
    assert found.counts[ours][pix2struct] == found.counts[pix2struct][ours] == 1
    records = [outcome.record for outcome in read_runs([folder / "first"])[0].outcomes if outcome.is_answer]
    values = [{verdict.value for verdict in verdicts(record).values() if verdict} for record in records]
    assert found.num_any == sum(len(each) > 1 for each in values)
    assert 1 <= found.num_any < len(records)
    assert all(found.counts[place][place] == 0 for place in range(len(found.alike)))


def test_scorers_that_judge_every_answer_alike_are_put_together(folder):
    samples = side_by_side(read_runs([folder / "second"]))
    found = disagreement(samples, 0)
    assert {"ours", "pix2struct", "vlmevalkit"} <= set(found.alike[0])
    assert sorted(itertools.chain(*found.alike)) == sorted(scorers_of(samples))


def test_a_scorer_that_says_nothing_of_an_answer_does_not_disagree_about_it(folder):
    (sample, *_) = side_by_side(read_runs([folder / "second"]))
    said = [{"a": 1.0, "b": None, "c": 1.0}, {"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": None}]
    samples = [replace(sample, outcomes=[judged(sample.outcomes[0], values)]) for values in said]
    found = disagreement(samples, 0)
    assert found.alike == [["a"], ["b"], ["c"]]
    assert found.counts == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert found.num_any == 1


def judged(outcome, values: dict[str, float | None]):
    said = {name: None if value is None else Verdict(value, None) for name, value in values.items()}
    return replace(outcome, verdicts=said)


def test_groups_have_the_scores_of_their_members(folder):
    samples = side_by_side(read_runs([folder / "first", folder / "second"]))
    values = [sample.record.fields["split"] for sample in samples]
    found = dict(groups(samples, "split", values, "ours", 2).rows)
    # augmented 0 2 4 6 8 10: 2 is unparsed; human 1 3 5 7 9 11: 1 is wrong and 3 is an error.
    assert [(score.n, score.mean) for score in found["augmented"]] == [(6, 5 / 6), (6, 1.0)]
    assert [(score.n, score.mean) for score in found["human"]] == [(5, 4 / 5), (6, 5 / 6)]


def test_calibration_is_reckoned_by_hand(folder):
    found = calibration(side_by_side(read_runs([folder / "first"])), 0, "ours")
    # 0.3: one wrong; 0.6: one right; 0.9: nine, of which one is unparsed.
    assert [(each.n, each.confidence, each.mean) for each in found.bins] == [
        (1, 0.3, 0.0),
        (1, 0.6, 1.0),
        (9, pytest.approx(0.9), pytest.approx(8 / 9)),
    ]
    assert found.error == pytest.approx((0.3 + 0.4 + 9 * abs(8 / 9 - 0.9)) / 11)


def test_a_scorer_that_never_applies_is_left_out(folder):
    names = scorers_of(side_by_side(read_runs([folder / "first"])))
    assert names[0] == "ours"
    assert len(names) == len(set(names)) > 3
