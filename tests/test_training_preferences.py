"""Runs on preferences: the reference is computed once and as the loss is, so that learning begins at ln 2."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.training_rows import draw_pictures, write_jsonl
from tests.training_runs import log_of, settings, write_model_and_talk
from vlm import VLMError
from vlm.training.journal import read_lines
from vlm.training.loop import Training
from vlm.training.objectives import DirectPreference


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_model_and_talk(tmp_path_factory.mktemp("training"))


def test_a_model_from_nothing_and_a_preference_run(place, tmp_path):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    changes = {
        "model": {"preset": "tiny"},
        "data": [{"path": str(tmp_path / "pairs.jsonl")}],
        "objective": {"name": "dpo", "beta": 1.0},
        "steps": 4,
    }
    report = Training(settings(place, tmp_path / "run", **changes)).train()
    losses = [row["loss"] for row in log_of(tmp_path / "run")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0]
    kept = (tmp_path / "run" / "reference.json").read_text()
    shutil.rmtree(report.result)
    assert Training(settings(place, tmp_path / "run", **changes)).train().result.exists()
    assert (tmp_path / "run" / "reference.json").read_text() == kept


def test_the_reference_of_preferences_is_computed_under_the_settings_of_the_run(place, tmp_path, monkeypatch):
    row = {"messages": [{"role": "user", "content": "q"}], "chosen": "b", "rejected": "c"}
    write_jsonl(tmp_path / "pairs.jsonl", [row])
    held, margins = [], DirectPreference.margins
    monkeypatch.setattr(
        DirectPreference,
        "margins",
        lambda *args: held.append(torch.are_deterministic_algorithms_enabled()) or margins(*args),
    )
    pairs = {"data": [{"path": str(tmp_path / "pairs.jsonl")}], "objective": {"name": "dpo"}}
    Training(settings(place, tmp_path / "run", deterministic=True, **pairs))
    assert held == [True]


def test_preferences_begin_at_ln_2_in_bf16_too(place, tmp_path):
    """The reference is computed as the loss is: in float32 it would be another model's."""
    row = {"prompt": "say", "chosen": "abcdefgh" * 9, "rejected": "12345678" * 9}
    changes = {
        "data": [{"path": str(write_jsonl(tmp_path / "pairs.jsonl", [row]))}],
        "objective": {"name": "dpo", "beta": 1.0},
        "precision": "bf16",
        "batch_size": 1,
        "steps": 1,
    }
    Training(settings(place, tmp_path / "run", **changes)).train()
    assert log_of(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


# What the reference is of


def pairs(tmp_path: Path, replies: str = "abcd", **changes) -> dict:
    rows = [{"prompt": "q", "chosen": reply, "rejected": "z"} for reply in replies]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    objective = {"name": "dpo", "beta": 1.0}
    return {"data": [{"path": str(path)}], "objective": objective, "steps": 2, "checkpoints": {"every": 1}} | changes


def margins_of(out: Path) -> list:
    return json.loads((out / "reference.json").read_text())["margins"]


def test_a_reference_of_other_data_or_of_none_that_is_known_is_computed_anew(place, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(VLMError):
        Training(settings(place, run, **pairs(tmp_path, "abcd"), optimizer={"groups": [{"match": "visio.*"}]}))
    # Edited after the reference was computed, before the run was begun.
    Training(settings(place, run, **pairs(tmp_path, "abce")))
    edited = margins_of(run)
    Training(settings(place, tmp_path / "fresh", **pairs(tmp_path, "abce")))
    assert edited == margins_of(tmp_path / "fresh")
    # As earlier versions kept it.
    (run / "reference.json").write_text(json.dumps([[0, number, 9.0] for number in range(4)]))
    Training(settings(place, run, **pairs(tmp_path, "abce")))
    assert margins_of(run) == edited


def test_a_pair_that_could_not_be_read_at_first_stays_left_out(place, tmp_path):
    rows = [{"id": f"{number}", "messages": [{"role": "user", "content": "<image>?"}], "images": [f"{number}.png"],
             "chosen": "a", "rejected": "b"} for number in range(3)]  # fmt: skip
    draw_pictures(tmp_path, {"0.png": 9, "1.png": 99})
    changes = pairs(tmp_path, data=[{"path": str(write_jsonl(tmp_path / "pictures.jsonl", rows))}])
    Training(settings(place, tmp_path / "run", **changes))
    draw_pictures(tmp_path, {"2.png": 200})
    report = Training(settings(place, tmp_path / "run", **changes)).train()
    assert (report.steps, report.poison) == (2, 1)
    (line,) = read_lines(tmp_path / "run" / "skipped_samples.jsonl")
    assert line["id"] == "2"
    assert "could not be used when the reference of the run was computed" in line["reason"]
