"""The loop: steps that are exact, runs that go on bit for bit, and accidents that end nothing else."""

import copy
import logging
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.nearness import difference
from tests.training_rows import same_state, write_jsonl
from tests.training_runs import ROOT, TOML, log_of, lora, settings, weights_of, write_model_and_talk
from vlm import VLM, VLMError
from vlm.training import checkpoints
from vlm.training.checkpoints import CheckpointFolder
from vlm.training.journal import Lines, read_lines
from vlm.training.loop import Training


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_model_and_talk(tmp_path_factory.mktemp("training"))


def gradients(training: Training, share: float = 1.0) -> dict[str, torch.Tensor]:
    """Return the gradients of the run's first step, which is not taken."""
    found = {}

    def keep():
        found.update(
            {name: weight.grad.clone() for name, weight in training.weights.items() if weight.grad is not None}
        )

    training.optimizers.step = keep
    training.step(training.data[0].examples, share)
    return found


def assert_near(found: dict, expected: dict, tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, grad in expected.items():
        if grad.any():
            assert difference(found[name], grad) < tolerance, name


# Steps


def test_accumulated_gradients_are_those_of_the_large_batch(place, tmp_path):
    """Weighted by tokens: the replies are of unequal length, and a mean of means would be another number."""
    whole = Training(settings(place, tmp_path / "a", batch_size=8, optimizer={"clip_norm": 0}))
    assert len({row.num_targets for example in whole.data[0].examples for row in example.rows}) > 1
    expected = gradients(whole)
    for size in (1, 3):
        out = tmp_path / f"micro-{size}"
        parts = Training(settings(place, out, batch_size=8, micro_batch_size=size, optimizer={"clip_norm": 0}))
        assert_near(gradients(parts), expected, 1e-4)


def test_recomputed_layers_give_the_same_gradients(place, tmp_path):
    kept = Training(settings(place, tmp_path / "a", **lora()))
    again = Training(settings(place, tmp_path / "b", recompute=True, **lora()))
    kept.model.train()
    again.model.train()
    assert_near(gradients(again), gradients(kept), 1e-6)


def test_bf16_computes_near_float32_and_keeps_weights_in_float32(place, tmp_path):
    exact = Training(settings(place, tmp_path / "a"))
    rough = Training(settings(place, tmp_path / "b", precision="bf16"))
    examples = exact.data[0].examples
    losses = [run.step(examples, 1.0).loss for run in (exact, rough)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert all(weight.dtype == torch.float32 for weight in rough.weights.values())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_learns_and_writes_a_model_that_answers(place, tmp_path, name):
    config = settings(place, tmp_path / "run", steps=12, optimizer={"name": name, "lr": 5e-3})
    report = Training(config).train()
    losses = [row["loss"] for row in log_of(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.5
    assert report.steps == len(losses) == 12
    assert report.result.name == "model"
    VLM.from_pretrained(report.result).logits([{"role": "user", "content": "say"}])
    assert report.curves is None or report.curves.stat().st_size > 1000


# Bad steps (F4) and poison (F6)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(place, tmp_path, monkeypatch, kind, caplog):
    training = Training(settings(place, tmp_path / "run", steps=51))
    bad, loss_of, seen = {7, 8, 9, 50}, training.objective.loss, {}

    def spoiled(model, examples):
        loss = loss_of(model, examples)
        if training.num_done + 1 in bad:
            if kind == "loss":
                return loss * math.nan
            # The loss is a number, its gradient is not.
            total = training.weights["decoder.norm.weight"].sum()
            total.register_hook(lambda grad: grad * math.inf)
            return loss + total - total.detach()
        return loss

    def step(examples, share, original=training.step):
        before = weights_of(training), copy.deepcopy(training.optimizers.state())
        outcome = original(examples, share)
        after = weights_of(training), copy.deepcopy(training.optimizers.state())
        seen[training.num_done + 1] = outcome, before, after
        return outcome

    monkeypatch.setattr(training.objective, "loss", spoiled)
    monkeypatch.setattr(training, "step", step)
    report = training.train()
    assert report.bad_steps == 4
    for number, (outcome, (weights, state), (weights_after, state_after)) in seen.items():
        assert outcome.skipped == (number in bad)
        if number in bad:
            assert same_state(weights, weights_after)
            assert same_state(state, state_after)
        else:
            assert not same_state(weights, weights_after)
    assert [row["step"] for row in log_of(tmp_path / "run") if row["skipped"]] == [7, 8, 9, 50]
    assert "step 7 is left out" in caplog.text


def test_too_many_bad_steps_in_a_row_end_the_run(place, tmp_path, monkeypatch):
    training = Training(settings(place, tmp_path / "run", max_bad_steps=3))
    loss_of = training.objective.loss
    monkeypatch.setattr(
        training.objective,
        "loss",
        lambda model, examples: loss_of(model, examples) * (math.nan if training.num_done >= 4 else 1),
    )
    with pytest.raises(VLMError, match=r"3 steps in a row.*stopped at step 7") as caught:
        training.train()
    assert len(caught.value.message) <= 300


def test_poison_is_named_once_and_counted(place, tmp_path, caplog):
    report = Training(settings(place, tmp_path / "run", data=[{"path": str(place / "talk.jsonl")}])).train()
    assert report.poison == 1
    (line,) = read_lines(tmp_path / "run" / "skipped_samples.jsonl")
    assert line["id"] == "talk-5"
    assert caplog.text.count("talk-5") == 1


def test_a_step_with_nothing_to_learn_is_no_bad_step(place, tmp_path):
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_jsonl(tmp_path / "half.jsonl", [{"id": "x", "text": "no conversation"}, {"messages": good}])
    changes = {"data": [{"path": str(tmp_path / "half.jsonl")}], "batch_size": 1, "shuffle": False, "steps": 4}
    report = Training(settings(place, tmp_path / "run", **changes)).train()
    assert [row["loss"] is None for row in log_of(tmp_path / "run")] == [True, False, True, False]
    assert (report.bad_steps, report.poison) == (0, 1)


# Going on (F1, F5)


MUON = {"optimizer": {"name": "muon", "lr": 2e-3}, "trained": {"parts": ["decoder.layers.0.*"]}}


@pytest.mark.parametrize("trained", [lora(), {}, MUON])
def test_a_run_cut_anywhere_goes_on_bit_for_bit(place, tmp_path, trained):
    straight = Training(settings(place, tmp_path / "straight", **trained))
    straight.train()
    out = tmp_path / "cut"
    for cut_at in (1, 5, 9):
        training = Training(settings(place, out, **trained, micro_batch_size=None))

        def step(examples, share, original=training.step, training=training, cut_at=cut_at):
            if training.num_done == cut_at:
                raise ConnectionAbortedError  # stands for a kill: nothing is saved on the way out
            return original(examples, share)

        training.step = step
        with pytest.raises(ConnectionAbortedError):
            training.train()
    last = Training(settings(place, out, **trained))
    assert last.num_done == 9
    last.train()
    assert log_of(out) == log_of(tmp_path / "straight")
    assert same_state(weights_of(last), weights_of(straight))
    assert same_state(last.optimizers.state(), straight.optimizers.state())
    saved = [CheckpointFolder(folder / "checkpoints", keep=2).load() for folder in (out, tmp_path / "straight")]
    assert same_state(dict(saved[0].weights), dict(saved[1].weights))


@pytest.mark.full
def test_two_hundred_steps_killed_ten_times_are_those_of_a_straight_run(place, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(TOML.format(out="unused", place=place))
    run = [sys.executable, "-m", "vlm", "train", str(config), "steps=200", "trained.lora.dropout=0.2"]
    subprocess.run([*run, f"out={tmp_path / 'straight'}"], check=True, cwd=ROOT, capture_output=True)
    for kill in range(10):
        process = subprocess.Popen([*run, f"out={tmp_path / 'cut'}", "checkpoints.every=3"], cwd=ROOT)
        log = tmp_path / "cut" / "log.jsonl"
        enough = 18 * (kill + 1) + kill % 3
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < enough):
            time.sleep(0.05)
        assert process.poll() is None
        process.kill()
        process.wait()
    subprocess.run([*run, f"out={tmp_path / 'cut'}", "checkpoints.every=3"], check=True, cwd=ROOT, capture_output=True)
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "straight")
    saved = [CheckpointFolder(tmp_path / name / "checkpoints", keep=2).load() for name in ("cut", "straight")]
    assert saved[0].step == saved[1].step == 200
    assert same_state(dict(saved[0].weights), dict(saved[1].weights))
    assert same_state(saved[0].optimizers, saved[1].optimizers)


def test_a_run_that_is_told_to_stop_saves_itself_first(place, tmp_path):
    training = Training(settings(place, tmp_path / "run", checkpoints={"every": 100}))
    take = training.step
    training.step = lambda *args: (training.num_done == 4 and training.stop(), take(*args))[1]
    with pytest.raises(KeyboardInterrupt):
        training.train()
    assert Training(settings(place, tmp_path / "run", checkpoints={"every": 100})).num_done == 5


def test_smaller_parts_go_on_with_the_same_run_and_other_settings_do_not(place, tmp_path):
    Training(settings(place, tmp_path / "run", steps=10)).train()
    assert Training(settings(place, tmp_path / "run", micro_batch_size=1, workers=1)).num_done == 10
    with pytest.raises(VLMError, match="begun with other settings of batch_size, seed"):
        Training(settings(place, tmp_path / "run", batch_size=2, seed=1))


def test_worker_processes_change_nothing(place, tmp_path):
    for workers in (0, 2):
        Training(settings(place, tmp_path / f"{workers}", workers=workers, steps=3)).train()
    assert log_of(tmp_path / "0") == log_of(tmp_path / "2")


# A full disk (F7); see test_training_checkpoints.py for what else happens to checkpoints


@pytest.mark.parametrize("policy", ["go_on", "stop"])
def test_a_full_disk_costs_a_checkpoint_and_never_the_last_good_one(place, tmp_path, monkeypatch, caplog, policy):
    training = Training(settings(place, tmp_path / "run", checkpoints={"every": 3, "on_failure": policy}))
    write = checkpoints.write_safetensors

    def full(path, tensors):
        write(path, tensors)
        if training.num_done == 6:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_safetensors", full)
    if policy == "stop":
        with pytest.raises(VLMError, match="No space left"):
            training.train()
        assert training.checkpoints.load().step == 3
    else:
        report = training.train()
        assert (report.steps, report.failed_saves) == (10, 1)
    assert "NO CHECKPOINT of step 6" in caplog.text
    (told,) = [record for record in caplog.records if "NO CHECKPOINT" in record.getMessage()]
    assert told.levelno >= logging.WARNING
    assert not list((tmp_path / "run" / "checkpoints").glob(".saving-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not run: /dev/full")
def test_a_log_that_finds_no_room_waits_for_it_and_the_run_goes_on(place, tmp_path, caplog):
    straight = Training(settings(place, tmp_path / "straight"))
    straight.train()
    training = Training(settings(place, tmp_path / "run"))
    log, aside, take = tmp_path / "run" / "log.jsonl", tmp_path / "run" / "aside", training.step

    def step(*args):
        if training.num_done == 3:
            log.rename(aside)
            log.symlink_to("/dev/full")
        if training.num_done == 6:
            aside.rename(log)
        return take(*args)

    training.step = step
    assert training.train().steps == 10
    assert log_of(tmp_path / "run") == log_of(tmp_path / "straight")
    assert caplog.text.count("log.jsonl cannot be written to (No space left on device)") == 1


def test_half_a_line_spoils_no_later_one(tmp_path):
    path = tmp_path / "skipped_samples.jsonl"
    path.write_text('{"id": "a"}\n{"id":')
    Lines(path).add({"id": "c"})
    assert read_lines(path) == [{"id": "a"}, {"id": "c"}]
