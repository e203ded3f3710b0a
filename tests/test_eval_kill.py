"""Real runs that are killed, interrupted and starved of disk: nothing that was answered is lost or done twice.

Those with a model start several processes that import torch, and are slow for that alone.
"""

import json
import random
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.eval_models import save_tiny_model, write_chart_questions

MAX_NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, and questions for short and for long runs."""
    path = tmp_path_factory.mktemp("kill")
    save_tiny_model(path / "tiny")
    write_chart_questions(path / "few", 60)
    return path


def command(folder: Path, out: Path, *more: str, data: str = "few") -> list[str]:
    return [
        *(sys.executable, "-m", "eval", "run", "chartqa", "--data", str(folder / data), "--out", str(out)),
        *("--model", str(folder / "tiny"), "--max-new-tokens", str(MAX_NEW_TOKENS), "--batch-size", "4"),
        *("--no-report", *more),
    ]


def start(*arguments, data: str = "few", **named) -> subprocess.Popen:
    named = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **named}
    return subprocess.Popen(command(*arguments, data=data), **named)


def finished(*arguments, data: str = "few") -> subprocess.CompletedProcess:
    """Run to the end, which must be a good one."""
    done = subprocess.run(command(*arguments, data=data), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done


def lines(out: Path) -> list[bytes]:
    journal = out / "predictions.jsonl"
    return journal.read_bytes().splitlines(keepends=True) if journal.exists() else []


def wait_for(condition, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def whole_run(folder: Path, data: str) -> Path:
    """Return an uninterrupted run, made once."""
    out = folder / f"whole-{data}"
    if not (out / "scores.json").exists():
        finished(folder, out, data=data)
    return out


def assert_equal(out: Path, whole: Path, num_samples: int) -> None:
    """Log (sorted) and scores are those of the uninterrupted run, byte for byte."""
    assert sorted(lines(out)) == sorted(lines(whole))
    names = [json.loads(line)["id"] for line in lines(out)]
    assert len(names) == len(set(names)) == num_samples
    assert (out / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()


WITHOUT_A_MODEL = """
import sys
from pathlib import Path
from eval.run.runner import RunSettings, run
from tests.mortal_backend import MortalBackend

data, out, notes = map(Path, sys.argv[1:4])
run(RunSettings(data={"chartqa": data}, out=out), MortalBackend(notes, dies_at=sys.argv[4]), show_progress=False)
"""


def run_without_a_model(data: Path, out: Path, notes: Path, dies_at: str = "") -> int:
    notes.mkdir()
    program = [sys.executable, "-c", WITHOUT_A_MODEL, str(data), str(out), str(notes), dies_at]
    return subprocess.run(program, timeout=300).returncode


def test_a_process_that_is_killed_in_the_middle_loses_nothing_and_repeats_nothing(tmp_path):
    """B1 without a model: killed at two samples, then left alone."""
    data, out = write_chart_questions(tmp_path / "data", 12), tmp_path / "run"
    assert run_without_a_model(data, tmp_path / "whole", tmp_path / "notes") == 0
    for number in (3, 7):
        killed = run_without_a_model(data, out, tmp_path / f"notes{number}", f"q{number}")
        assert killed == -signal.SIGKILL
        assert [json.loads(line)["id"] for line in lines(out)] == [f"q{each}" for each in range(number)]
    assert run_without_a_model(data, out, tmp_path / "notes-end") == 0
    assert lines(out) == lines(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_as_if_it_never_was(folder, tmp_path):
    """B1, short: three times, as soon as something new is written."""
    out = tmp_path / "run"
    for _ in range(3):
        before = len(lines(out))
        process = start(folder, out)
        wait_for(lambda before=before: len(lines(out)) > before)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 3 <= len(lines(out)) < 60
    finished(folder, out)
    assert_equal(out, whole_run(folder, "few"), 60)


@pytest.mark.full
def test_fifty_kills_at_random_times(folder, tmp_path):
    """B1: 500 samples; ten kills at times drawn evenly over the start, forty over the answering after it.

    Answering has begun when a record is new; from there on a kill comes at any time of the next sixtieth of the work.
    """
    write_chart_questions(folder / "many", 500)
    begun = time.monotonic()
    process = start(folder, folder / "whole-many", data="many")
    wait_for(lambda: len(lines(folder / "whole-many")) > 0)
    start_s = time.monotonic() - begun
    process.communicate(timeout=1200)
    work_s = time.monotonic() - begun - start_s
    out, draw, counts = tmp_path / "run", random.Random(0), []
    for number in range(50):
        before = len(lines(out))
        process = start(folder, out, data="many")
        if number % 5 == 0:
            time.sleep(draw.uniform(0, start_s))
        else:
            wait_for(lambda: len(lines(out)) > before or process.poll() is not None, timeout_s=600)  # noqa: B023
            time.sleep(draw.uniform(0, work_s / 60))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(len(lines(out)))
    finished(folder, out, data="many")
    assert_equal(out, whole_run(folder, "many"), 500)
    working = sum(later > earlier for earlier, later in pairwise([0, *counts]))
    assert working >= 40 or counts[-1] == 500
    print(f"50 kills, {working} of them while answers were written, after {counts[-1]} of 500; 0 lost, 0 double")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "when"), [("SIGTERM", "answering"), ("SIGINT", "loading"), ("SIGHUP", "loading")])
def test_a_signal_leaves_a_run_that_can_be_resumed_and_says_how(folder, tmp_path, name, when):
    """B3."""
    out = tmp_path / "a run"
    process = start(folder, out, "--new-run")
    lock = out / "predictions.lock"
    wait_for(lambda: len(lines(out)) > 0 if when == "answering" else lock.exists() and lock.read_text())
    process.send_signal(getattr(signal, name))
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    resume = "vlm-eval " + " ".join(command(folder, out)[3:])
    assert resume.replace(str(out), f"'{out}'") in complaint
    assert "--new-run" not in complaint
    assert "Traceback" not in complaint
    assert all(line.endswith(b"\n") and json.loads(line) for line in lines(out))


@pytest.mark.slow
def test_a_second_process_is_refused_at_once(folder, tmp_path):
    """B10."""
    lock = tmp_path / "predictions.lock"
    first = start(folder, tmp_path)
    wait_for(lambda: lock.exists() and lock.read_text())
    second = start(folder, tmp_path)
    _, complaint = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {first.pid} is writing" in complaint
    first.kill()
    first.communicate()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_which_goes_on_when_there_is_room(folder, tmp_path):
    """B8: no file may grow past a few records."""
    out = tmp_path / "run"
    limit = 9000

    def starve():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    starved = start(folder, out, preexec_fn=starve)
    _, complaint = starved.communicate(timeout=120)
    assert starved.returncode == 1
    assert "predictions.jsonl cannot be written (" in complaint
    kept = lines(out)
    assert kept
    assert all(line.endswith(b"\n") for line in kept)
    finished(folder, out)
    assert lines(out)[: len(kept)] == kept
    assert_equal(out, whole_run(folder, "few"), 60)
