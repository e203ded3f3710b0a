"""Files of predictions as lmms-eval, lm-evaluation-harness and VLMEvalKit write them, scored again by their own rules.

The lines and columns are those of their releases; `test_eval_harnesses.py` has the harnesses themselves write some.
"""

import csv
import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from eval.cli import main
from eval.prediction_files import read_predictions
from eval.prediction_files.taking_over import agreement
from eval.run.journal import read_journal
from vlm.errors import VLMError

ASKED = "How many?\nAnswer the question with a single word."
CHOICE = "Which?\nA. root\nB. leaf\nC. stem\nAnswer with the option's letter from the given choices directly."


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lmms_line(number: int, reply: str, target: str, **more) -> dict:
    common = {"doc_id": number, "target": target, "filtered_resps": reply, "doc_hash": "0a", "token_counts": [None]}
    return {**common, "input": ASKED, **more}


def lmms_chartqa(folder: Path) -> Path:
    judged = [("10", "10", 1.0), ("10.4", "10", 1.0), ("10.6", "10", 0.0), ("[1, 2]", "[1, 2]", 1.0)]
    rows = [
        lmms_line(number, reply, target, relaxed_overall=score, relaxed_human_split=score)
        for number, (reply, target, score) in enumerate(judged)
    ]
    rows.append(lmms_line(4, "7", "7", resps=["<think>so</think>7"], relaxed_overall=1.0, relaxed_augmented_split=1.0))
    return lines(folder / "20260101_120000_samples_chartqa.jsonl", rows)


def lmms_ai2d(folder: Path) -> Path:
    rows = [
        lmms_line(0, "B", "B", resps=["B. leaf"], input=CHOICE, exact_match=1.0),
        lmms_line(1, "leaf", "B", input=CHOICE, exact_match=0.0),
    ]
    return lines(folder / "20260101_120000_samples_ai2d.jsonl", rows)


def lmms_docvqa(folder: Path) -> Path:
    rows = [lmms_line(0, "nike", "['Nike', 'nike inc']", anls=1.0), lmms_line(1, "abcd", "['wxyz']", anls=0.0)]
    return lines(folder / "20260101_120000_samples_docvqa_val.jsonl", rows)


def lm_chartqa(folder: Path) -> Path:
    said = [("So. FINAL ANSWER: 12", 1.0, 1.0), ("The bars are 1200 and 3", 0.0, 0.0), ("Final Answer:\n12", 0.0, 1.0)]
    rows = [
        {
            "doc_id": number,
            "doc": {"query": "How many?", "label": ["12"], "human_or_machine": number % 2},
            "target": "12",
            "arguments": {"gen_args_0": {"arg_0": "<image>How many?", "arg_1": {"until": []}}},
            "resps": [[reply]],
            "filtered_resps": [reply],
            "filter": "none",
            "exact_match": exact,
            "relaxed_accuracy": relaxed,
        }
        for number, (reply, exact, relaxed) in enumerate(said)
    ]
    return lines(folder / "samples_chartqa_llama_2026-01-01T10-00-00.000000.jsonl", rows)


KIT_ROWS = [
    {"index": 1, "question": "How\tmany?", "answer": "[2010, 2011]", "split": "test_human", "prediction": "2010"},
    {"index": 2, "question": "Which?", "answer": "Brazil", "split": "test_human", "prediction": "brazil"},
    {"index": 3, "question": "Which?", "answer": "Brazil", "split": "test_augmented", "prediction": "It is Brazil."},
]
KIT_MATCHES = ("[1.0, 0.0]", "[np.float64(1.0)]", "[0.0]")


def kit_tsv(folder: Path) -> Path:
    path = folder / "Some-Model-7B_ChartQA_TEST_result.tsv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*KIT_ROWS[0], "eval_match"], delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(row | {"eval_match": match} for row, match in zip(KIT_ROWS, KIT_MATCHES, strict=True))
    return path


def kit_json(folder: Path) -> Path:
    path = folder / "Some-Model-7B_AI2D_TEST.json"
    row = {"index": 7, "question": "Which?", "A": "root", "B": "leaf", "C": None, "answer": "B", "category": "food"}
    judged = [{"prediction": "B. leaf", "hit": 1}, {"index": 8, "prediction": "A", "hit": 0}]
    path.write_text(json.dumps([row | each for each in judged]))
    return path


FILES = {
    "lmms-eval, ChartQA": (lmms_chartqa, "lmms-eval", "chartqa", {"relaxed_overall": ("lmms_eval", 0.8)}),
    "lmms-eval, AI2D": (lmms_ai2d, "lmms-eval", "ai2d", {"exact_match": ("lmms_eval_ai2d", 0.5)}),
    "lmms-eval, DocVQA": (lmms_docvqa, "lmms-eval", "docvqa", {"anls": ("lmms_eval", 0.5)}),
    "lm-eval, ChartQA": (
        lm_chartqa,
        "lm-evaluation-harness",
        "chartqa",
        {
            "exact_match": ("lm_eval_exact_match", 1 / 3),
            "relaxed_accuracy": ("lm_eval_relaxed_accuracy", 2 / 3),
        },
    ),
    "VLMEvalKit, tsv": (kit_tsv, "VLMEvalKit", "chartqa", {"eval_match": ("vlmevalkit", 2 / 3)}),
    "VLMEvalKit, json": (kit_json, "VLMEvalKit", "ai2d", {"hit": ("vlmevalkit_exact_matching", 0.5)}),
}


@pytest.mark.parametrize("name", FILES)
def test_another_harness_s_score_is_reproduced_to_the_last_sample(name, tmp_path):
    write, harness, task, expected = FILES[name]
    found = read_predictions(write(tmp_path))
    assert (found.harness, found.task) == (harness, task)
    both = {each["figure"]: each for each in agreement(found)}
    assert set(both) == set(expected)
    for figure, each in both.items():
        assert each["scorer"] == expected[figure][0]
        assert each["theirs"] == each["ours"] == pytest.approx(expected[figure][1])
        assert each["differ"] == []


def test_a_difference_is_named(tmp_path):
    path = lines(tmp_path / "x_samples_chartqa.jsonl", [lmms_line(5, "1", "2", relaxed_overall=1.0)])
    (both,) = agreement(read_predictions(path))
    assert (both["theirs"], both["ours"], both["differ"]) == (1.0, 0.0, ["5"])


def test_what_is_read_is_what_was_asked_and_said(tmp_path):
    chart = read_predictions(lmms_chartqa(tmp_path)).answers[4].record
    assert (chart.prediction, chart.fields) == ("<think>so</think>7", {"split": "augmented"})
    choice = read_predictions(lmms_ai2d(tmp_path)).answers[0].record
    assert (choice.options, choice.target, choice.prediction) == (("root", "leaf", "stem"), ("B",), "B. leaf")
    spelt = read_predictions(lmms_docvqa(tmp_path)).answers[0].record
    assert spelt.target == ("Nike", "nike inc")
    other = read_predictions(lm_chartqa(tmp_path)).answers[1].record
    assert (other.question, other.fields) == ("How many?", {"split": "augmented"})
    third = read_predictions(kit_json(tmp_path)).answers[0].record
    assert (third.id, third.options, third.fields) == ("7", ("root", "leaf"), {"category": "food"})


def test_an_import_is_a_run_like_any_other(tmp_path):
    path, out = kit_tsv(tmp_path), tmp_path / "run"
    done = CliRunner().invoke(main, ["import", str(path), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert "eval_match = vlmevalkit: theirs 66.67, ours 66.67 of 3, the same to the last sample" in done.output
    said = json.loads(done.output.splitlines()[-1])
    assert said["scores"]["tasks"]["chartqa"]["scores"]["vlmevalkit"]["mean"] == pytest.approx(2 / 3)
    assert [record.prediction for record in read_journal(out / "predictions.jsonl")] == [
        row["prediction"] for row in KIT_ROWS
    ]
    scored = CliRunner().invoke(main, ["score", str(out), "--scorer", "pix2struct"])
    assert scored.exit_code == 0
    again = CliRunner().invoke(main, ["import", str(path), "--out", str(out)])
    assert again.exit_code == 1
    assert "holds a run; expected none" in again.output


@pytest.mark.skipif(importlib.util.find_spec("openpyxl") is None, reason="not run: openpyxl")
def test_a_spreadsheet_is_read_as_its_tsv_is(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    names = list(KIT_ROWS[0])
    book.active.append(names)
    for row in KIT_ROWS:
        book.active.append([row[name] for name in names])
    name = "Some-Model-7B_ChartQA_TEST"
    book.save(tmp_path / f"{name}.xlsx")
    sheet, table = (read_predictions(path).answers for path in (tmp_path / f"{name}.xlsx", kit_tsv(tmp_path)))
    assert [each.record for each in sheet] == [each.record for each in table]


def test_without_openpyxl_a_spreadsheet_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "M_ChartQA_TEST.xlsx").write_bytes(b"PK")
    with pytest.raises(VLMError, match="needs openpyxl, which is not installed; run: pip install openpyxl"):
        read_predictions(tmp_path / "M_ChartQA_TEST.xlsx")


BAD = {
    "is not there": ("x_samples_chartqa.jsonl", None, "cannot be read"),
    "is empty": ("x_samples_chartqa.jsonl", b"", "is empty; expected lmms-eval's"),
    "is no JSON": ("x_samples_chartqa.jsonl", b"{", r"row 1: found JSONDecodeError"),
    "has other lines": ("x_samples_chartqa.jsonl", b'{"id": 3}', "row 1: found ValueError: no doc_id and filtered_"),
    "has no reply": ("x_samples_chartqa.jsonl", b'{"doc_id": 0, "filtered_resps": [], "target": "x"}', "no reply"),
    "is of an unknown task": ("x_samples_seed.jsonl", b'{"doc_id": 0, "filtered_resps": "x"}', "give --task"),
    "is of a task that begins alike": ("x_samples_chartqapro.jsonl", b'{"doc_id": 0, "filtered_resps": "x"}', "--task"),
    "has no predictions": ("M_ChartQA_TEST.tsv", b"index\tanswer\n1\tx\n", "has no column 'prediction'"),
    "is not there, of another kind": ("M_ChartQA_TEST.txt", None, "cannot be read"),
    "is JSON cut off": ("M_ChartQA_TEST.json", b'[{"index": 1', "cannot be read .it is damaged: Expecting"),
    "is JSON without an end": ("M_ChartQA_TEST.json", b"[" * 100_000, "cannot be read .it is damaged"),
    "has a line that is no row": ("M_ChartQA_TEST.json", b'[{"index": 1, "prediction": "3"}, "x"]', "row 2: found"),
    "is no UTF-8": ("M_ChartQA_TEST.tsv", b"index\tprediction\n1\t\xe9\n", "cannot be read .it is damaged: 'utf-8'"),
    "is of another kind": ("M_ChartQA_TEST.txt", b"x", "has no column 'prediction'; expected lmms-eval's"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_none_of_theirs_is_refused_and_says_why(name, tmp_path):
    file, content, said = BAD[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(VLMError, match=said) as caught:
        read_predictions(tmp_path / file)
    assert str(tmp_path) not in caught.value.message
    assert len(caught.value.message) <= 300


def test_two_replies_to_one_question_are_refused(tmp_path):
    path = lines(tmp_path / "x_samples_chartqa.jsonl", [lmms_line(5, "1", "2"), lmms_line(5, "2", "2")])
    done = CliRunner().invoke(main, ["import", str(path), "--out", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert "two replies to question 5" in done.output
