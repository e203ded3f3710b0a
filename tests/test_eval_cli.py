"""`vlm-eval`: what it prints, what it refuses, and with which status it leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eval.cli import main
from eval.commands.tables import score_lines
from tests.eval_models import save_tiny_model, write_chart_questions

COMMANDS = sorted(main.commands)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def last_json(result: Result) -> dict:
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    save_tiny_model(path / "tiny")
    write_chart_questions(path / "data", 9, changed={4: {"image": "gone.png"}})
    return path


def run(folder: Path, out: str, *more: object) -> Result:
    arguments = ("--data", folder / "data", "--out", folder / out, "--model", folder / "tiny")
    return invoke("run", "chartqa", *arguments, "--max-new-tokens", "3", "--no-report", *more)


@pytest.fixture(scope="module")
def done(folder) -> Result:
    """One whole run, with one bad sample."""
    return run(folder, "run", "--json")


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_how_the_command_is_used(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"  vlm-eval {command}" in result.stdout
    assert "--json" in result.stdout


def test_help_imports_nothing_heavy():
    program = f"""
import sys
from click.testing import CliRunner
from eval.cli import main
from eval.commands.tables import score_lines
for arguments in [[], *([name] for name in {COMMANDS})]:
    assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0
heavy = ("torch", "numpy", "scipy", "PIL", "pyarrow", "httpx", "ray", "tqdm", "asyncio")
print([name for name in heavy if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr


def test_the_module_is_the_command():
    found = subprocess.run([sys.executable, "-m", "eval", "--version"], capture_output=True, text=True, timeout=60)
    assert found.stdout.startswith("vlm-eval, version ")


# list


def test_list_shows_every_task_and_what_it_takes():
    result = invoke("list", "--json")
    assert result.exit_code == 0
    tasks = {task["name"]: task for task in last_json(result)["tasks"]}
    assert {"chartqa", "ai2d", "docvqa", "infovqa", "textvqa", "vqav2", "mmmu", "mmmu_pro", "mathvista"} <= set(tasks)
    for name, task in tasks.items():
        assert f"{name}: {task['title']}" in result.stdout
        assert task["headline"] in task["scorers"]
        assert task["default_prompt"] in task["prompts"]
        assert task["formats"]


# run


def test_a_run_ends_with_a_table_and_one_line_of_json(folder, done):
    found = last_json(done)
    assert (found["samples"], found["errors"]) == (9, 1)
    assert found["tasks"] == json.loads((folder / "run" / "scores.json").read_text())["tasks"]
    assert "9 samples answered, 1 errors (9 asked now)" in done.stdout
    assert "chartqa: 9 samples, 1 ended in errors and are not in the scores" in done.stdout
    assert not (folder / "run" / "report.html").exists()


def test_the_status_says_whether_there_were_more_errors_than_allowed(done):
    assert done.exit_code == 1


def test_run_again_there_is_nothing_left_to_ask(folder, done):
    before = (folder / "run" / "predictions.jsonl").read_bytes()
    result = run(folder, "run", "--max-errors", "1")
    assert result.exit_code == 0
    assert "9 samples answered, 9 of them by an earlier run, 1 errors (0 asked now)" in result.stdout
    assert (folder / "run" / "predictions.jsonl").read_bytes() == before


def test_the_manifest_holds_everything_that_defines_the_run(folder, done):
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    assert manifest["data"] == str(folder / "data")
    assert manifest["command"][:3] == ["vlm-eval", "run", "chartqa"]
    assert manifest["model"].keys() >= {"name", "weights", "device", "dtype", "reference", "processor"}
    assert manifest["generation"].keys() >= {"temperature", "top_p", "seed"}
    assert manifest["libraries"].keys() >= {"python", "torch", "sightline-vlm"}
    assert " ".join(manifest["tasks"]["chartqa"]) == "prompt max_new_tokens num_samples samples prompts"


def test_another_run_is_refused_field_by_field(folder, done):
    result = run(folder, "run", "--temperature", "0.5", "--seed", "4", "--json")
    assert result.exit_code == 1
    assert "generation.temperature: found 0.5, expected 0.0" in result.stderr
    assert "generation.seed: found 4, expected None" in result.stderr
    assert last_json(result)["error"]["code"] == "invalid_request"


def test_shards_are_merged_by_score(folder, done):
    result = run(folder, "sharded", "--shard", "1/1", "--max-errors", "1")
    assert result.exit_code == 0
    assert "when all 1 shards are done: vlm-eval score" in result.stdout
    result = invoke("score", folder / "sharded", "--json")
    assert last_json(result) == {"tasks": last_json(done)["tasks"]}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--shard", "3/2"], "expected INDEX/COUNT"),
        (["--backend", "openai"], "needs --base-url"),
        (["--backend", "openai", "--base-url", "http://h/v1", "--likelihood", "options"], "no effect with --backend"),
        (["--backend", "openai", "--base-url", "http://h/v1", "--device", "cpu"], "--device has no effect"),
        (["--backend", "openai", "--base-url", "http://h/v1", "--adapter", "a"], "--adapter has no effect"),
        (["--backend", "openai", "--base-url", "http://h/v1", "--views", "2"], "--views has no effect"),
        (["--base-url", "http://h/v1"], "no effect with --backend local"),
        (["--data", "ai2d=x"], "--data says where ai2d lies, which is none of the tasks"),
        (["--engine", "ray", "--shard", "1/2"], "without --shard"),
        (["--samples", ",", "--samples", " "], "--samples names none"),
        (["--temperature", "nan"], "is nan; expected a finite number"),
        (["--temperature", "inf"], "is inf; expected a finite number"),
        (["--top-p", "nan"], "is nan; expected a finite number"),
        (["--timeout", "nan"], "is nan; expected a finite number"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_wrong_usage_is_explained(folder, more, complaint):
    result = run(folder, "wrong", *more)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint", "status"),
    [
        (["run", "chess", "--data", "x", "--out", "y"], "there is no task 'chess'", 2),
        (["run", "chartqa", "--data", "nowhere", "--out", "{out}"], "nowhere", 1),
        (["run", "chartqa", "--data", "{long}", "--out", "{out}"], "cannot be read (File name too long)", 1),
        (["run", "chartqa", "--data", "~nosuchuser", "--out", "{out}"], "nosuchuser", 1),
        (["score", "nowhere"], "nowhere", 1),
        (["score", "{long}"], "cannot be read (File name too long)", 1),
        (["compare", "nowhere", "nowhere"], "holds no answers", 1),
    ],
)
def test_what_fails_is_said_in_one_line(tmp_path, monkeypatch, arguments, complaint, status):
    monkeypatch.chdir(tmp_path)
    result = invoke(*(word.format(out=tmp_path / "out", long="y" * 300) for word in arguments))
    assert result.exit_code == status
    assert complaint in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# score and compare


def test_score_needs_no_model(folder, done):
    result = invoke("score", folder / "run", "--scorer", "pix2struct", "--json")
    assert result.exit_code == 0
    assert set(last_json(result)["tasks"]["chartqa"]["scores"]) == {"pix2struct"}


def test_a_scorer_or_a_prompt_that_is_not_offered_is_wrong_usage(folder, done):
    for result in (invoke("score", folder / "run", "--scorer", "gut"), run(folder, "asked", "--prompt", "gut")):
        assert result.exit_code == 2
        assert "gut" in result.stderr


def test_compare_shows_both_scores_and_the_error_of_their_difference(folder, done):
    result = invoke("compare", folder / "run", folder / "run", "--json")
    assert result.exit_code == 0
    found = last_json(result)["tasks"]["chartqa"]
    assert found["n"] == 8
    assert found["scores"]["ours"].keys() >= {"first", "second", "difference", "interval", "p_value", "detectable"}
    assert "chartqa: 8 samples in both" in result.stdout
    assert "McNemar p, as if independent = 1" in result.stdout


def test_compare_says_what_is_unknown_and_what_only_one_run_has(folder, done, tmp_path):
    (tmp_path / "one").mkdir()
    line = (folder / "run" / "predictions.jsonl").read_text().splitlines()[-1]
    (tmp_path / "one" / "predictions.jsonl").write_text(f"{line}\n{line.replace('chartqa', 'docvqa')}\n")
    result = invoke("compare", tmp_path / "one", folder / "run")
    assert "[interval unknown]" in result.stdout
    assert "docvqa: answered in the first run alone and not compared" in result.stdout


# report


def test_a_run_that_cannot_be_written_to_is_reported_elsewhere(folder, done, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.commands.report.os.access", lambda path, mode: False)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "run").iterdir()}
    result = invoke("report", folder / "run", "--out", tmp_path / "report.html")
    assert result.exit_code == 0
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "run").iterdir()} == before


def test_the_table_says_which_variant_and_what_was_cut_off():
    found = {"n": 3, "errors": 1, "missing": 0, "cut_off": 2, "scores": {}}
    tasks = {"chartqa": {**found, "cut_off": 0}, "ai2d": {"variant": "opaque", **found}}
    errors = "1 ended in errors and are not in the scores"
    assert list(score_lines({"tasks": tasks})) == [
        f"chartqa: 3 samples, {errors}",
        f"ai2d (opaque): 3 samples, {errors}, 2 cut off by the limit of tokens",
    ]
