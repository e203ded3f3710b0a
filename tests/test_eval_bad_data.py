"""B4: damaged samples become error records that say why, their neighbours are answered, and what is mended goes on."""

import json
import os
from dataclasses import replace

import pytest

from eval.run.runner import Outcome, RunSettings, run
from eval.scoring import score_folder
from tests.eval_data_sets import picture
from tests.eval_models import EchoBackend, write_chart_questions
from vlm import VLMError

NUM = 15
BAD_UTF8 = b'{"id": "q7", "image": "2.png", "question": "Value \xff?", "answer": "7", "split": "human"}'


@pytest.fixture
def settings(tmp_path) -> RunSettings:
    """Questions of which five are bad: no picture, no file, no question, no UTF-8, no JSON."""
    changed = {1: {"image": "text.png"}, 3: {"image": "gone.png"}, 5: {"question": ""}}
    path = write_chart_questions(tmp_path / "data", NUM, changed=changed)
    (path.parent / "text.png").write_text("not a picture")
    lines = path.read_bytes().splitlines()
    lines[7], lines[9] = BAD_UTF8, lines[9][:-5]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return RunSettings(data={"chartqa": path}, out=tmp_path / "run")


def records(settings: RunSettings) -> list[dict]:
    return [json.loads(line) for line in (settings.out / "predictions.jsonl").read_text().splitlines()]


def test_five_bad_samples_are_five_error_rows_and_the_rest_is_answered(settings, caplog):
    assert run(settings, EchoBackend()) == Outcome(NUM, 0, 5, None)
    assert "chartqa: 5 of 15 samples cannot be asked: image file 'text.png' is no picture" in caplog.text
    found = records(settings)
    answered = {record["id"]: record["prediction"] for record in found if record["error"] is None}
    assert answered == {f"q{number}": str(number) for number in range(NUM) if number not in (1, 3, 5, 7, 9)}
    errors = sorted(record["error"] for record in found if record["error"] is not None)
    begin = [
        "image file 'gone.png' is missing",
        "image file 'text.png' is no picture",
        "test.jsonl, row 10, column '",
        "test.jsonl, row 6, column 'question': found nothing",
        "test.jsonl, row 8, column '1': found bytes that are no JSON",
    ]
    assert all(map(str.startswith, errors, begin))
    assert len(errors) == len(begin)
    scores = score_folder(settings.out)["tasks"]["chartqa"]
    assert (scores["n"], scores["answered"], scores["errors"], scores["missing"]) == (NUM, 10, 5, 0)


def test_neighbours_are_asked_in_the_company_they_would_have_had(settings):
    backend = EchoBackend()
    run(settings, backend)
    asked = [name for batch in backend.asked for name in batch]
    assert asked == [f"q{number}" for number in range(NUM) if number not in (1, 3, 5, 7, 9)]


def test_a_picture_that_is_put_back_is_asked_about_again(settings):
    run(settings, EchoBackend())
    (settings.data["chartqa"].parent / "gone.png").write_bytes(picture(7))
    assert run(settings, EchoBackend()).num_errors == 5, "not before that is wanted"
    again = EchoBackend()
    assert run(replace(settings, retry_errors=True), again).num_errors == 4
    assert [record["prediction"] for record in records(settings) if record["id"] == "q3"] == [None, "3"]


def test_pictures_that_were_all_missing_may_be_put_back(tmp_path):
    path = write_chart_questions(tmp_path / "data", 3, changed={number: {"image": "gone.png"} for number in range(3)})
    chosen = RunSettings(data={"chartqa": path}, out=tmp_path / "run")
    assert run(chosen, EchoBackend()).num_errors == 3
    (path.parent / "gone.png").write_bytes(picture(7))
    assert run(replace(chosen, retry_errors=True), EchoBackend()).num_errors == 0


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan"), 10**400])
def test_a_number_without_an_end_beside_a_question_disturbs_nobody(tmp_path, odd):
    path = write_chart_questions(tmp_path / "data", 3, changed={1: {"weight": odd}})
    chosen = RunSettings(data={"chartqa": path}, out=tmp_path / "run")
    assert run(chosen, EchoBackend()).num_errors == 0
    assert score_folder(chosen.out)["tasks"]["chartqa"]["answered"] == 3


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": "zero\0.png"}, "cannot be read"),
        ({"image": "pipe"}, "is empty"),
        ({"image": "/dev/zero"}, "is no picture"),
        ({"answer": float("nan")}, "column 'answer': found nothing"),
    ],
)
def test_what_has_no_end_or_says_nothing_is_an_error_row_and_not_waited_for(tmp_path, changed, reason):
    path = write_chart_questions(tmp_path / "data", 3, changed={1: changed})
    os.mkfifo(path.parent / "pipe")
    chosen = RunSettings(data={"chartqa": path}, out=tmp_path / "run")
    assert run(chosen, EchoBackend()).num_errors == 1
    assert [reason in record["error"] for record in records(chosen) if record["error"]] == [True]


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "test.jsonl").write_text("\n \n")
    with pytest.raises(VLMError, match=r"test\.jsonl is empty; expected ChartQA as"):
        run(RunSettings(data={"chartqa": tmp_path / "test.jsonl"}, out=tmp_path / "run"), EchoBackend())
