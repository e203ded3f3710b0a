"""The file of a report: nothing in it is anybody's HTML, it asks nobody for anything, and it stays small."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from eval.cli import main
from eval.report import page, page_data, write_report
from eval.report.run import read_runs
from eval.report.samples import side_by_side
from tests.eval_report_pages import Report
from tests.eval_reports import HOSTILE, noise, write_questions, write_records, write_run, write_two_runs
from vlm import VLMError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_two_runs(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def one(folder) -> Report:
    return Report(folder / "one.html", folder / "first")


@pytest.fixture(scope="module")
def both(folder) -> Report:
    return Report(folder / "both.html", folder / "first", folder / "second")


# Hostile texts


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Report:
    """Every text that a model, a data set or a file name brings is hostile."""
    path = tmp_path_factory.mktemp("hostile")
    name = "<img src=x onerror=window.harmed=9>"
    data = write_questions(path / name, 21)

    def replaced(number: int) -> dict:
        text = HOSTILE[number % len(HOSTILE)]
        named = {"id": f"{number} {text}", "question": text, "target": (text,), "images": (f"{text}{number}.png",)}
        named |= {"prompt": f"user:\n{text}", "fields": {"split": text, text: text, "category": text}}
        if number % 5 == 4:
            return named | {"error": text}
        reply = "" if number == 0 else f"FINAL ANSWER: {text}"
        return named | {"prediction": reply, "finish_reason": text, "options": (text, "b") if number % 2 else ()}

    write_run(path / f"{name}1", data, differs=replaced, model={"name": name, "processor": None})
    run = write_run(
        path / f"{name}2", data, differs=replaced, model={"name": name}, tasks={"chartqa": {"prompt": [name]}}
    )
    return Report(path / "report.html", path / f"{name}1", run)


def test_hostile_texts_make_no_elements(hostile, both):
    harmless, found = both.elements, hostile.elements
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in harmless.tags}
    assert not found.attributes("img")
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag


def test_hostile_texts_arrive_as_they_were(hostile):
    shown = [row["question"] for row in hostile.rows["rows"]]
    assert set(shown) == set(HOSTILE)
    assert "<" not in "".join(re.findall(r'id="(?:rows|about)">(.*?)</script>', hostile.html, re.DOTALL))
    replies = {row["runs"][0].get("reply") for row in hostile.rows["rows"]}
    assert f"FINAL ANSWER: {HOSTILE[0]}" in replies
    assert HOSTILE[0] in hostile.elements.text()


def test_the_file_is_ascii_so_that_no_text_can_break_its_encoding(hostile):
    assert hostile.html.isascii()


# Offline


def test_the_page_asks_the_network_for_nothing(both):
    for tag, attributes in both.elements.tags:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), f"{tag} {name}={attributes[name]}"
    style = "".join(text for tag, text in both.elements.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_the_security_policy_allows_this_script_and_style_alone(both):
    policy = next(each["content"] for each in both.elements.attributes("meta") if "http-equiv" in each)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert (rules["base-uri"], rules["form-action"]) == ("'none'", "'none'")
    script = re.findall(r"<script>(.*?)</script>", both.html, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", both.html, re.DOTALL)
    assert len(script) == len(style) == 1
    assert rules["script-src"] == f"'sha256-{page._digest(script[0])}'"
    assert rules["style-src"] == f"'sha256-{page._digest(style[0])}'"
    assert both.html.index("Content-Security-Policy") < both.html.index("<style>")


def test_the_script_writes_no_html():
    source = page._files(page._SCRIPT)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch("):
        assert word not in source


# Size


def write_large(folder: Path, num_samples: int, size: tuple[int, int], prompt_chars: int) -> Path:
    """Write a run with a picture of chance for each sample, and long texts that are all different."""
    contents = [noise(number, size) for number in range(8)]
    pictures = {number: {"image": f"{number}.png"} for number in range(num_samples)}
    data = write_questions(folder / "data", num_samples, changed=pictures)
    for number in range(num_samples):
        (data / f"{number}.png").write_bytes(contents[number % 8])
    text = "".join(chr(ord("a") + number % 26) for number in range(prompt_chars))
    return write_run(
        folder / "run",
        data,
        differs=lambda number: {"prompt": f"{number} {text}", "prediction": f"{text} {number}\nFINAL ANSWER: 5"},
    )


def test_a_report_stays_under_its_limit_whatever_the_pictures_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(page, "_RESERVED_BYTES", 250_000)
    monkeypatch.setattr(page_data, "MAX_TEXT_BYTES", 300_000)
    report = Report(tmp_path / "report.html", write_large(tmp_path, 16, (500, 400), 15_000))
    assert 500_000 < len(report.html) < 1_000_000
    assert len(report.pictures) == 16
    assert all(outcome["reply"].endswith("FINAL ANSWER: 5") for row in report.rows["rows"] for outcome in row["runs"])
    assert "characters are shown without their middle" in report.elements.text()


@pytest.mark.full
def test_three_thousand_samples_stay_under_thirty_megabytes(tmp_path):
    run = write_large(tmp_path, 3000, (1000, 800), 3000)
    write_report([run], tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    assert 15_000_000 < size < 30_000_000


def test_what_is_left_out_of_a_text_is_its_middle(folder):
    samples = side_by_side(read_runs([folder / "first"]))
    sample = samples[0]
    record = replace(sample.outcomes[0].record, prediction="start" + "x" * 100_000 + "FINAL ANSWER: 5")
    long = replace(sample, outcomes=[replace(sample.outcomes[0], record=record)])
    found = page_data.rows([long], {"chartqa": ["ours"]}, {}, max_bytes=6_000)
    reply = json.loads(found.json)["rows"][0]["runs"][0]["reply"]
    assert reply.startswith("startx")
    assert reply.endswith("FINAL ANSWER: 5")
    assert "characters left out" in reply
    assert len(found.json) <= 6_000
    assert found.num_cut >= 1


def test_of_very_many_samples_some_are_listed_evenly(monkeypatch, tmp_path):
    monkeypatch.setattr(page_data, "MAX_LISTED", 4)
    data = write_questions(tmp_path / "data", 12)
    report = Report(tmp_path / "report.html", write_run(tmp_path / "run", data))
    assert [row["id"] for row in report.rows["rows"]] == ["q0", "q3", "q6", "q9"]
    assert report.about["facets"]["split"]["of"] == [0, 1, 0, 1]
    assert "Of 12 samples 4 are listed, evenly spread" in report.elements.text()
    assert ">12</td>" in report.html


# The file


def test_the_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    data = write_questions(tmp_path / "data", 3)
    run = write_run(tmp_path / "run", data)
    (tmp_path / "report.html").write_text("the old one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(VLMError, match=r"report\.html cannot be written"):
        write_report([run], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "report.html", "run"]


def test_the_folder_of_the_file_is_made(folder, tmp_path):
    write_report([folder / "first"], tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").exists()


def test_a_folder_without_answers_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(VLMError, match="'run' holds no answers"):
        write_report([tmp_path / "run"], tmp_path / "report.html")


def test_a_run_that_has_answered_nothing_yet_has_a_report(tmp_path):
    report = Report(tmp_path / "report.html", write_records(tmp_path / "run", []))
    assert "Nothing was answered yet." in report.elements.text()
    assert report.rows["rows"] == []


def test_a_run_of_errors_alone_has_a_report(tmp_path):
    data = write_questions(tmp_path / "data", 3)
    run = write_run(tmp_path / "run", data, differs=lambda number: {"error": "it fails"})
    report = Report(tmp_path / "report.html", run)
    assert "no score" in report.elements.text()
    assert [row["runs"][0]["error"] for row in report.rows["rows"]] == ["it fails"] * 3


def test_the_same_runs_give_the_same_file(folder, one, tmp_path):
    assert Report(tmp_path / "again.html", folder / "first").html == one.html


def test_the_command_writes_the_report(folder, tmp_path):
    arguments = [
        "report",
        str(folder / "first"),
        str(folder / "second"),
        "--out",
        str(tmp_path / "both.html"),
        "--json",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["report"] == str(tmp_path / "both.html")
    assert (tmp_path / "both.html").read_text().startswith("<!DOCTYPE html>")


def test_importing_the_report_imports_nothing_heavy():
    program = """
import sys, eval.report
print([name for name in ("torch", "PIL", "jinja2", "scipy", "numpy", "pyarrow") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]", found.stderr
