"""What a run draws and computes: the same again where that is asked for, each process its own where it must be."""

import itertools
import os
from pathlib import Path

import pytest
import torch

from tests.training_rows import same_state
from tests.training_runs import log_of, lora, settings, weights_of, write_model_and_talk
from vlm import VLMError
from vlm.training.config import Parallel
from vlm.training.deterministic import deterministic_algorithms
from vlm.training.loop import Training
from vlm.training.parallel.world import DIMS, World


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_model_and_talk(tmp_path_factory.mktemp("training"))


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
