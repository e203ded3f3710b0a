"""From logs to scores and comparisons: what is counted, and that nothing else is needed."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from eval.comparison import compare
from eval.records import Prediction
from eval.run.journal import Journal
from eval.scoring import score_folder
from eval.verdicts import verdicts
from vlm import VLMError


def record(number: int, prediction: str | None, target: str = "10", **named) -> Prediction:
    return Prediction(
        **{
            "id": f"q{number}",
            "task": "chartqa",
            "key": "k",
            "prompt": "user:\n?",
            "prediction": prediction,
            "token_ids": (1,),
            "finish_reason": "stop",
            "confidence": 0.5,
            "target": (target,),
            "error": None if prediction is not None else "it fails",
            "images": (f"{number // 2}.png",),
            "question": f"Value {number}?",
            **named,
        }
    )


def choice(number: int, prediction: str, **named) -> Prediction:
    named = {"task": "ai2d", "options": ("root", "leaf", "stem"), "prompt": "user:\nA. root\nB. leaf\nC. stem", **named}
    return record(number, prediction, "B", **named)


def folder(path, records, name: str = "predictions.jsonl"):
    path.mkdir(exist_ok=True)
    with Journal(path / name) as journal:
        for each in records:
            journal.append(each)
    return path


RIGHT_AND_WRONG = [record(0, "10"), record(1, "10.2"), record(2, "12"), record(3, "ten"), record(4, "10")]


def test_scores_are_what_the_interface_promises(tmp_path):
    found = score_folder(folder(tmp_path / "run", RIGHT_AND_WRONG))
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == found
    task = found["tasks"]["chartqa"]
    assert (task["n"], task["errors"]) == (5, 0)
    score = task["scores"]["pix2struct"]
    assert score["mean"] == pytest.approx(3 / 5)
    # By hand: deviations 0.4 0.4 | -0.6 -0.6 | 0.4 in three clusters.
    assert score["stderr"] == pytest.approx(math.sqrt(3 / 2 * (0.8**2 + 1.2**2 + 0.4**2)) / 5)
    assert score["stderr_naive"] == pytest.approx(math.sqrt(1.2 / 4 / 5))
    # Five answers times 0.06, the naive variance, over 0.1344, the clustered one, are worth 2.232 of them.
    assert score["wilson"] == pytest.approx([0.1420, 0.9315], abs=1e-4)
    assert next(iter(task["scores"])) == "ours"


def test_scores_come_from_the_log_alone_in_whatever_order_and_files(tmp_path):
    whole = score_folder(folder(tmp_path / "whole", RIGHT_AND_WRONG))
    parts = folder(tmp_path / "parts", RIGHT_AND_WRONG[3:], "predictions-2-of-2.jsonl")
    folder(parts, RIGHT_AND_WRONG[2::-1], "predictions-1-of-2.jsonl")
    assert score_folder(parts) == whole
    assert (parts / "scores.json").read_bytes() == (tmp_path / "whole" / "scores.json").read_bytes()


def test_errors_are_counted_and_are_no_answers(tmp_path):
    found = score_folder(folder(tmp_path / "run", [*RIGHT_AND_WRONG, record(5, None)]))["tasks"]["chartqa"]
    assert (found["n"], found["answered"], found["errors"]) == (6, 5, 1)
    score = found["scores"]["ours"]
    assert (score["n"], score["mean"], score["mean_errors_wrong"]) == (5, pytest.approx(3 / 5), pytest.approx(3 / 6))


def test_what_was_cut_off_or_not_parsed_is_counted(tmp_path):
    records = [choice(0, "B"), choice(1, "I cannot say", finish_reason="length"), choice(2, "A")]
    found = score_folder(folder(tmp_path / "run", records))["tasks"]["ai2d"]
    assert found["cut_off"] == 1
    assert found["scores"]["ours"]["unparsed"] == 1
    assert found["scores"]["ours"]["mean"] == pytest.approx(1 / 3)


def test_scores_are_given_by_what_samples_can_be_grouped_by(tmp_path):
    records = [
        replace(each, fields={"split": "human" if place < 2 else "augmented"})
        for place, each in enumerate(RIGHT_AND_WRONG)
    ]
    by = score_folder(folder(tmp_path / "run", records))["tasks"]["chartqa"]["scores"]["ours"]["by"]
    assert {name: (group["n"], group["mean"]) for name, group in by["split"].items()} == {
        "augmented": (3, pytest.approx(1 / 3)),
        "human": (2, 1),
    }


def test_scores_say_of_which_variant_they_are(tmp_path):
    records = [
        choice(0, "B", fields={"variant": "opaque"}),
        choice(1, "B", fields={"variant": "opaque"}),
        record(2, "1"),
    ]
    found = score_folder(folder(tmp_path / "run", records))["tasks"]
    assert found["ai2d"]["variant"] == "opaque"
    assert "variant" not in found["chartqa"]


def test_people_s_own_fields_may_be_called_as_a_rule_s(tmp_path):
    odd = {"category": 5, "question_type": 3, "precision": "x", "language": True, "year_flags": 3, "numbered": "y"}
    found = score_folder(folder(tmp_path / "run", [record(0, "10", fields=odd)]))
    assert found["tasks"]["chartqa"]["scores"]["ours"]["mean"] == 1


@pytest.mark.parametrize("manifest", [{}, {"tasks": []}, {"tasks": {"chartqa": 5}}, {"tasks": {"chartqa": {}}}])
def test_a_manifest_that_says_nothing_of_use_is_none(tmp_path, manifest):
    run = folder(tmp_path / "run", RIGHT_AND_WRONG)
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert score_folder(run)["tasks"]["chartqa"]["missing"] is None


def test_nothing_is_written_where_nothing_is_to_be_kept(tmp_path):
    run = folder(tmp_path / "run", RIGHT_AND_WRONG)
    found = score_folder(run, keep=False)
    assert [path.name for path in run.iterdir()] == ["predictions.jsonl"]
    assert found == score_folder(run)


def test_scorers_may_be_named(tmp_path):
    found = score_folder(folder(tmp_path / "run", RIGHT_AND_WRONG), ["qwen_vl", "ours"])
    assert set(found["tasks"]["chartqa"]["scores"]) == {"qwen_vl", "ours"}
    with pytest.raises(VLMError, match=r"no scorer is called nobody; expected one of ours, .*pix2struct"):
        score_folder(tmp_path / "run", ["ours", "nobody"])


def test_a_folder_without_answers_is_refused(tmp_path):
    with pytest.raises(VLMError, match="holds no answers"):
        score_folder(tmp_path)


def test_options_shown_as_numbers_are_answered_with_numbers():
    numbered = choice(0, "FINAL ANSWER: 2", prompt="user:\n1. root\n2. leaf\n3. stem")
    assert verdicts(numbered)["ours"].value == 1


def test_numbered_options_are_known_though_the_first_is_not_offered():
    numbered = choice(0, "FINAL ANSWER: 2", prompt="user:\n2. leaf\n3. stem", options=("", "leaf", "stem"))
    assert verdicts(numbered)["ours"].value == 1


def test_likelihood_needs_no_parsing():
    found = verdicts(choice(0, "who knows", option_scores=((-9.0, 3), (-4.0, 2), (-3.0, 1))))
    assert found["likelihood"].extracted == "C"
    assert found["likelihood_mean"].extracted == "B"
    assert verdicts(choice(0, "who knows"))["likelihood"] is None


def test_scoring_loads_no_model():
    program = (
        "import sys, eval.scoring, eval.comparison; print([n for n in ('torch', 'ray', 'httpx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# Comparison


def test_a_comparison_is_of_the_samples_that_both_answered(tmp_path):
    first = folder(tmp_path / "a", [record(n, "10" if n in (0, 1) else "7") for n in range(10)])
    second = folder(tmp_path / "b", [record(n, "10" if n > 3 else "7") for n in range(9)] + [record(9, None)])
    found = compare(first, second)["tasks"]["chartqa"]
    assert (found["n"], found["only_in_first"], found["only_in_second"]) == (9, 1, 0)
    score = found["scores"]["ours"]
    assert (score["first"], score["second"]) == (pytest.approx(2 / 9), pytest.approx(5 / 9))
    assert score["difference"] == pytest.approx(3 / 9)
    assert (score["only_first_right"], score["only_second_right"]) == (2, 5)
    # Twice the chance of at most two heads in seven tosses.
    assert score["p_value"] == pytest.approx(2 * (1 + 7 + 21) / 2**7)
    assert score["interval"][0] < score["difference"] < score["interval"][1]
    assert score["detectable"] > 0


def test_a_run_does_not_differ_from_itself(tmp_path):
    run = folder(tmp_path / "a", RIGHT_AND_WRONG)
    score = compare(run, run)["tasks"]["chartqa"]["scores"]["ours"]
    assert (score["difference"], score["interval"], score["p_value"]) == (0, [0, 0], 1)
    assert score["detectable"] is None


def test_a_task_that_only_one_run_has_is_named(tmp_path):
    more = replace(RIGHT_AND_WRONG[0], task="docvqa")
    first, second = folder(tmp_path / "a", [*RIGHT_AND_WRONG, more]), folder(tmp_path / "b", RIGHT_AND_WRONG)
    for runs, only in (((first, second), (["docvqa"], [])), ((second, first), ([], ["docvqa"]))):
        found = compare(*runs)
        assert (found["tasks_only_in_first"], found["tasks_only_in_second"]) == only
        assert list(found["tasks"]) == ["chartqa"]


@pytest.mark.parametrize("changed", [{"question": "Other?"}, {"target": ("11",)}, {"images": ("x.png",)}])
def test_runs_on_other_data_are_not_compared(tmp_path, changed):
    first = folder(tmp_path / "a", RIGHT_AND_WRONG)
    second = folder(tmp_path / "b", [replace(RIGHT_AND_WRONG[0], **changed), *RIGHT_AND_WRONG[1:]])
    with pytest.raises(VLMError, match=f"sample 'q0' of chartqa has another {next(iter(changed))} in each run"):
        compare(first, second)


def test_runs_with_nothing_in_common_are_refused(tmp_path):
    first = folder(tmp_path / "a", [record(0, "10")])
    with pytest.raises(VLMError, match="no answered sample in common"):
        compare(first, folder(tmp_path / "b", [record(1, "10")]))
