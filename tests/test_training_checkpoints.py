"""Checkpoints of a run: kills, damage, and which ones stay."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vlm import VLMError
from vlm.training import checkpoints
from vlm.training.checkpoints import CheckpointFolder, State

ROOT = Path(__file__).parent.parent


def state(step: int) -> State:
    weights = {"w": torch.full((50, 50), float(step))}
    remembered = {"step": torch.tensor(float(step)), "exp_avg": torch.ones(50, 50)}
    return State(step, weights, {"w": remembered}, {"loss": 1.0})


def spoil(path: Path, how: str) -> None:
    content = bytearray((path / "state.safetensors").read_bytes())
    if how == "flip":
        content[-7] ^= 4
    elif how == "truncate":
        del content[-100:]
    (path / "state.safetensors").write_bytes(content)
    if how == "missing":
        (path / "state.safetensors").unlink()


@pytest.mark.parametrize("how", ["flip", "truncate", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(tmp_path, how, caplog):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2, 3):
        folder.save(state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    spoil(tmp_path / "step-00000003", how)
    assert folder.load().step == 2
    assert "step-00000003 is damaged" in caplog.text
    folder.save(state(3))
    assert folder.load().step == 3
    for step in (2, 3):
        spoil(tmp_path / f"step-0000000{step}", how)
    with pytest.raises(VLMError, match="all 2 checkpoints of the run are damaged"):
        folder.load()


def test_a_damaged_checkpoint_takes_no_good_ones_place(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2, 3):
        folder.save(state(step))
    spoil(tmp_path / "step-00000003", "truncate")
    folder.save(state(4))
    spoil(tmp_path / "step-00000004", "flip")
    assert folder.load().step == 2
    for step in (5, 6):
        folder.save(state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


def test_what_was_just_saved_stays_beside_a_damaged_checkpoint_of_a_later_step(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state(9))
    spoil(tmp_path / "step-00000009", "truncate")
    folder.save(state(3))
    assert folder.load().step == 3


def test_the_last_good_checkpoint_outlives_a_save_that_went_wrong_unseen(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state(1))
    write = checkpoints.write_checksums

    def wrong(staging):
        write(staging)
        spoil(staging, "flip")

    monkeypatch.setattr(checkpoints, "write_checksums", wrong)
    with pytest.raises(VLMError):
        folder.save(state(2))
    assert folder.load().step == 1


def test_a_step_that_is_saved_already_is_not_taken_away_to_be_saved_again(tmp_path, monkeypatch):
    """A run that is told to stop saves the step under way, which may just have been saved."""
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state(1))

    def full(path, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_safetensors", full)
    folder.save(state(1))
    assert folder.load().step == 1
    with pytest.raises(VLMError):
        folder.save(state(2))
    assert folder.load().step == 1


KILLED = """
import sys, torch
from pathlib import Path
from vlm.training.checkpoints import CheckpointFolder, State
folder = CheckpointFolder(Path(sys.argv[1]), keep=2)
state = folder.load()
step = state.step if state else 0
print("ready", flush=True)
while True:
    step += 1
    weights = {str(place): torch.full((300, 300), float(step)) for place in range(8)}
    folder.save(State(step, weights, {"0": {"step": torch.tensor(float(step))}}, {}))
    print(step, flush=True)
"""


@pytest.mark.parametrize("num_kills", [3, pytest.param(50, marks=pytest.mark.full)])
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path, num_kills):
    reached = 0
    for kill in range(num_kills):
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout.readline() == "ready\n"
        told = int(process.stdout.readline())
        time.sleep(0.013 * (kill % 7))
        os.kill(process.pid, signal.SIGKILL)
        told = max([told, *(int(line) for line in process.stdout.read().split())])
        process.wait()
        found = CheckpointFolder(tmp_path, keep=2).load()
        assert found.step in (told, told + 1)
        assert found.step > reached
        reached = found.step
        assert all((tensor == reached).all() for tensor in found.weights.values())
    CheckpointFolder(tmp_path, keep=2).clean()
    assert all(path.name.startswith("step-") for path in tmp_path.iterdir())
