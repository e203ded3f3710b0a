"""Runs that end before their last step: by a signal, or since what reads their samples died; they are saved first."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import parallel_runs
from tests.training_runs import TOML, log_of, settings, write_model_and_talk
from vlm import VLMError
from vlm.cli import main
from vlm.training.checkpoints import CheckpointFolder
from vlm.training.config import TrainConfig
from vlm.training.data.ahead import DIED, Ahead
from vlm.training.data.batches import StepBatches
from vlm.training.loop import Training
from vlm.training.settings import build

RARELY = {"every": 100}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_model_and_talk(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def straight(place) -> list[dict]:
    """The log of a run that nothing happened to."""
    Training(settings(place, place / "straight", checkpoints=RARELY)).train()
    return log_of(place / "straight")


# Signals


def test_a_signal_while_processes_agree_to_go_on_counts_the_next_time(place, tmp_path):
    training = Training(settings(place, tmp_path / "run", checkpoints=RARELY))
    gather = training.world.gather

    def gather_and_be_told(value, dim=None):
        answers = gather(value, dim)
        if dim is None and training.num_done == 5:
            training.stop()
        return answers

    training.world.gather = gather_and_be_told
    with pytest.raises(KeyboardInterrupt):
        training.train()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000006"]


def hung_up(place: Path, out: Path, monkeypatch) -> int:
    """Run the command, whose terminal is closed in its third step; return its exit code."""
    take = Training.step

    def step(self, *args):
        if self.num_done == 2:
            os.kill(os.getpid(), signal.SIGHUP)
        return take(self, *args)

    monkeypatch.setattr(Training, "step", step)
    config = out.with_suffix(".toml")
    config.write_text(TOML.format(out=out, place=place))
    return CliRunner().invoke(main, ["train", str(config)]).exit_code


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_saves_and_ends_a_run_but_under_nohup(place, tmp_path, monkeypatch, ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        code = hung_up(place, tmp_path / "run", monkeypatch)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (code == 0) == ignored
    assert CheckpointFolder(tmp_path / "run" / "checkpoints", keep=2).load().step == (6 if ignored else 3)


def told_after_the_agreement(folder: Path) -> None:
    """Train until the main process alone gets a signal, while it writes down a step that all have taken."""
    training = Training(build(TrainConfig, parallel_runs.settings(folder, "told", checkpoints=RARELY)))
    signal.signal(signal.SIGTERM, training.stop)
    tell = training._tell

    def tell_and_be_told(*args):
        tell(*args)
        if training.num_done == 5 and training.world.is_main:
            os.kill(os.getpid(), signal.SIGTERM)

    training._tell = tell_and_be_told
    with pytest.raises(KeyboardInterrupt):
        training.train()
    assert training.num_done == 5


def cannot_read_on(folder: Path) -> None:
    """Train until the other process cannot read its samples; both end."""
    training = Training(build(TrainConfig, parallel_runs.settings(folder, "unread", checkpoints=RARELY)))
    read = Ahead.read

    def read_or_fail(self):
        if training.num_done == 4 and not training.world.is_main:
            self.failure = f"{DIED} 7) is killed by signal: Killed."
            return None
        return read(self)

    Ahead.read = read_or_fail
    with pytest.raises(VLMError, match="at step 5 those that read samples died"):
        training.train()


@pytest.mark.slow
def test_processes_that_are_told_apart_end_together(tmp_path):
    parallel_runs.write_inputs(tmp_path)
    for run, out, step in ((told_after_the_agreement, "told", 5), (cannot_read_on, "unread", 4)):
        parallel_runs.run_all(2, run, tmp_path)
        assert CheckpointFolder(tmp_path / out / "checkpoints", keep=2).load().step == step


# Processes that read ahead


def die_at(monkeypatch, index: int, once: Path | None = None) -> None:
    """Have a process that reads ahead die at a step: the first that comes to it, or each."""
    read, main_id = StepBatches.__getitem__, os.getpid()

    def read_or_die(self, step):
        if step == index and os.getpid() != main_id and not (once is not None and once.exists()):
            if once is not None:
                once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, step)

    monkeypatch.setattr(StepBatches, "__getitem__", read_or_die)


def test_a_reader_that_dies_is_replaced_and_the_run_is_the_same(place, tmp_path, monkeypatch, straight, caplog):
    die_at(monkeypatch, 4, once=tmp_path / "died")
    Training(settings(place, tmp_path / "run", checkpoints=RARELY, workers=2)).train()
    assert log_of(tmp_path / "run") == straight
    assert "those that read ahead are started again" in caplog.text


def test_a_reader_that_dies_within_a_step_does_not_disturb_it(place, tmp_path, straight, caplog):
    training = Training(settings(place, tmp_path / "run", checkpoints=RARELY, workers=2))
    take = training.step

    def step(*args):
        if training.num_done == 3:
            for reader in multiprocessing.active_children():
                reader.kill()
                reader.join()
        return take(*args)

    training.step = step
    training.train()
    assert log_of(tmp_path / "run") == straight
    assert "those that read ahead are started again" in caplog.text


def test_readers_that_always_die_at_a_step_end_the_run_which_is_saved(place, tmp_path, monkeypatch, straight):
    config = settings(place, tmp_path / "run", checkpoints=RARELY, workers=2)
    die_at(monkeypatch, 4)
    with pytest.raises(VLMError, match=r"at step 5 those that read samples died again and again \(Data") as caught:
        Training(config).train()
    assert len(caught.value.report) <= 300
    going_on = Training(settings(place, tmp_path / "run", checkpoints=RARELY))
    assert going_on.num_done == 4
    going_on.train()
    assert log_of(tmp_path / "run") == straight


def test_an_error_of_a_reader_is_raised_as_it_is(place, tmp_path, monkeypatch):
    def fail(self, step):
        raise RuntimeError("wrong")

    monkeypatch.setattr(StepBatches, "__getitem__", fail)
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker"):
        Training(settings(place, tmp_path / "run", workers=1)).train()
