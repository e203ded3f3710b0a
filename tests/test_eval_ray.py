"""Shards as Ray tasks: the same records, also when a worker is lost."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from eval.run.folder import RunFolder
from eval.run.runner import RunSettings, run
from eval.scoring import score_folder
from tests.eval_models import write_chart_questions
from tests.mortal_backend import MortalBackend
from vlm import VLMError

ROOT = Path(__file__).parent.parent
NUM = 40


@pytest.fixture
def settings(tmp_path) -> RunSettings:
    (tmp_path / "processes").mkdir()
    return RunSettings(data={"chartqa": write_chart_questions(tmp_path / "data", NUM)}, out=tmp_path / "run")


@pytest.fixture(scope="module")
def ray():
    """A local Ray with two workers."""
    ray = pytest.importorskip("ray", reason="not run: ray")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield ray
    ray.shutdown()


def records(out: Path) -> list[dict]:
    return [json.loads(line) for path in RunFolder(out).journals() for line in path.read_text().splitlines()]


def test_the_loss_of_a_worker_changes_no_record(ray, settings, tmp_path):
    from eval.run.ray_engine import run_on_ray

    processes = tmp_path / "processes"
    outcome = run_on_ray(settings, partial(MortalBackend, processes, "q7"), 2, uses_accelerator=False)
    assert (processes / "died").exists()
    assert (outcome.num_samples, outcome.num_errors) == (NUM, 0)
    whole = RunSettings(data=settings.data, out=tmp_path / "whole")
    run(whole, MortalBackend(processes))
    found, expected = (sorted(json.dumps(each) for each in records(out)) for out in (settings.out, whole.out))
    assert found == expected
    assert score_folder(settings.out) == score_folder(whole.out)


def test_what_stops_a_shard_is_raised_here(ray, settings, tmp_path):
    from eval.run.ray_engine import run_on_ray

    (tmp_path / "data" / "test.jsonl").write_text("{")
    with pytest.raises(VLMError, match=r"test\.jsonl"):
        run_on_ray(settings, partial(MortalBackend, tmp_path / "processes"), 2, uses_accelerator=False)


def test_without_ray_it_says_what_to_install(settings, monkeypatch):
    from eval.run.ray_engine import run_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(VLMError, match="pip install ray"):
        run_on_ray(settings, MortalBackend, 2, uses_accelerator=False)
