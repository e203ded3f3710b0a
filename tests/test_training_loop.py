"""The loop: steps that are exact, runs that go on bit for bit, and accidents that end nothing else."""

import copy
import itertools
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.conftest import random_model
from tests.nearness import difference
from tests.training_rows import draw_pictures, same_state, write_jsonl
from vlm import VLM, Tokenizer, VLMError, preset
from vlm.cli import main
from vlm.training import checkpoints
from vlm.training.checkpoints import CheckpointFolder
from vlm.training.config import Parallel, TrainConfig
from vlm.training.deterministic import deterministic_algorithms
from vlm.training.journal import Lines, read_lines
from vlm.training.loop import Training
from vlm.training.objectives import DirectPreference
from vlm.training.parallel.world import DIMS, World
from vlm.training.settings import build

ROOT = Path(__file__).parent.parent
TIMES = ("elapsed_s",)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny checkpoint with open gates, and samples of unequal length with and without images, one of them poison."""
    folder = tmp_path_factory.mktemp("training")
    VLM(random_model(preset("tiny")), Tokenizer.bytes_only()).save_pretrained(folder / "model")
    draw_pictures(folder, {"a.png": 30, "b.png": 200})
    rows = []
    for number in range(9):
        text = f"say {number} " * (1 + number % 3)
        content = [{"type": "text", "text": text}]
        if number % 2:
            content.insert(0, {"type": "image", "image": "ab"[number % 4 // 2] + ".png"})
        if number == 5:
            content.insert(0, {"type": "image", "image": "missing.png"})
        reply = {"role": "assistant", "content": f"{number}" * (1 + number % 4)}
        rows.append({"id": f"talk-{number}", "messages": [{"role": "user", "content": content}, reply]})
    write_jsonl(folder / "talk.jsonl", rows)
    write_jsonl(folder / "more.jsonl", [dict(row, id=f"more-{place}") for place, row in enumerate(rows[:3])])
    return folder


def settings(place: Path, out: Path, **changes) -> TrainConfig:
    values = {
        "out": str(out),
        "model": {"source": str(place / "model")},
        "data": [{"path": str(place / "talk.jsonl")}, {"path": str(place / "more.jsonl"), "weight": 4}],
        "optimizer": {"lr": 2e-3},
        "schedule": {"name": "cosine", "warmup_steps": 2},
        "checkpoints": {"every": 3, "keep": 2},
        "steps": 10,
        "batch_size": 4,
    }
    return build(TrainConfig, values | changes)


def lora(dropout: float = 0.3) -> dict:
    return {"trained": {"lora": {"rank": 2, "dropout": dropout, "targets": ["q_proj", "v_proj"]}}}


def log_of(out: Path) -> list[dict]:
    """Return the log without what the clock says."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_lines(out / "log.jsonl")]


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in training.weights.items()}


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


# The command

TOML = """
out = "{out}"
steps = 6
batch_size = 4
[model]
source = "{place}/model"
[[data]]
path = "{place}/talk.jsonl"
[trained.lora]
rank = 4
targets = ["*_proj"]
[optimizer]
lr = 0.02
"""


def test_the_command_trains_an_adapter_that_ask_takes(place, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(TOML.format(out=tmp_path / "run", place=place))
    done = CliRunner().invoke(main, ["train", str(config), "steps=8", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["steps"], report["poison"]) == (8, 1)
    arguments = ["ask", str(place / "a.png"), "say", "--model", str(place / "model"), "--max-new-tokens", "4"]
    plain, adapted = (CliRunner().invoke(main, [*arguments, *more]) for more in ((), ("--adapter", report["result"])))
    assert adapted.exit_code == plain.exit_code == 0
    assert adapted.stdout != plain.stdout
    again = CliRunner().invoke(main, ["train", str(config), "steps=8"])
    assert "going on after step 8 of 8" in again.stdout
    wrong = CliRunner().invoke(main, ["train", str(config), "stepz=8", "--json"])
    assert wrong.exit_code == 1
    assert "did you mean steps?" in json.loads(wrong.stdout.splitlines()[-1])["error"]["message"]


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


def test_a_deterministic_run_repeats_itself_bit_for_bit(place, tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    runs = []
    for name, on in (("once", True), ("again", True), ("plain", False)):
        runs.append(Training(settings(place, tmp_path / name, deterministic=on, **lora())))
        held, loss_of = set(), runs[-1].objective.loss

        def watched(*args, held=held, loss_of=loss_of):
            held.add((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
            return loss_of(*args)

        runs[-1].objective.loss = watched
        runs[-1].train()
        assert held == {(on, ":4096:8")}
        assert not torch.are_deterministic_algorithms_enabled()
    assert log_of(tmp_path / "once") == log_of(tmp_path / "again")
    assert same_state(weights_of(runs[0]), weights_of(runs[1]))
    Training(settings(place, tmp_path / "once", deterministic=False, **lora()))


def test_what_no_deterministic_algorithm_computes_is_told(place, tmp_path):
    training = Training(settings(place, tmp_path / "run", deterministic=True))
    training.objective.loss = lambda *_: torch.zeros(2).put_(torch.tensor([1]), torch.ones(1)).sum()
    with pytest.raises(VLMError, match=r"deterministic is true .*: put_ does not have .*; set deterministic = false"):
        training.train()
    assert not torch.are_deterministic_algorithms_enabled()


def test_cublas_that_was_begun_before_is_told_apart():
    said = "enabled with `torch.use_deterministic_algorithms(True)`, but it uses CuBLAS; set CUBLAS_WORKSPACE_CONFIG"
    told = r"cuBLAS was begun .* none; set it to :4096:8 before the program starts"
    with pytest.raises(VLMError, match=told), deterministic_algorithms(True):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match=r"^another$"), deterministic_algorithms(True):
        raise RuntimeError("another")
    assert not torch.are_deterministic_algorithms_enabled()


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


def test_those_who_share_a_layer_draw_the_same_and_all_others_their_own(place, tmp_path):
    training = Training(settings(place, tmp_path / "run"))
    examples, seeds = training.data[0].examples, {}

    class Place(World):
        """Of a process in a grid of two stages, two shares of the data and two parts of each layer."""

        def __init__(self, *places):
            super().__init__(Parallel(), training.world.device, size=1)
            self.places = dict(zip(DIMS, places, strict=True))

        def place(self, dim):
            return self.places[dim]

        def extent(self, dim):
            return 2

        def gather(self, value, dim=None):
            return [value]

    class Noting:
        def gradients(self, parts, weight):
            seeds[tuple(training.world.places.values())] = torch.initial_seed()
            return 0.0

    training.learner = Noting()
    for places in itertools.product(range(2), repeat=3):
        training.world = Place(*places)
        training.step(examples, 1.0)
    assert len(seeds) == 8
    assert all(seeds[stage, data, 0] == seeds[stage, data, 1] for stage, data, _ in seeds)
    assert len(set(seeds.values())) == 4


def test_the_first_commands_of_the_documentation_work(tmp_path):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    script = text.split("```bash\n")[1].split("```")[0]
    for old, new in (("/tmp/first", str(tmp_path)), ("steps = 40", "steps = 2")):
        assert old in script
        script = script.replace(old, new)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "wrote run/adapter" in done.stdout
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "run" / "adapter").iterdir()
    }
    merging = text.split("```py\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", merging], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "merged" / "config.json").exists()
