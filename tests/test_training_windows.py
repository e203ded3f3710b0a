"""Texts cut into windows: they count towards the size of what is computed at once, and the step stays the same."""

from pathlib import Path

import pytest
import torch

from tests.nearness import difference
from tests.training_rows import write_jsonl
from tests.training_runs import settings, write_model_and_talk
from vlm import Tokenizer, VLMError
from vlm.training.loop import Training
from vlm.training.objectives import NextToken


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = write_model_and_talk(tmp_path_factory.mktemp("training"))
    write_jsonl(folder / "texts.jsonl", [{"text": "so it went on " * 7}, {"text": "and ended"}])
    return folder


def parts_and_gradients(place: Path, out: Path, size: int | None) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Return how many rows were computed at once, part by part, and the gradients of the first step."""
    changes = {"data": [{"path": str(place / "texts.jsonl")}], "objective": {"name": "next_token"}, "max_length": 16}
    changes |= {"batch_size": 2, "micro_batch_size": size, "optimizer": {"clip_norm": 0}}
    training = Training(settings(place, out, **changes))
    sizes, found, fill = [], {}, training.learner.gradients

    def count(parts, weight):
        sizes.extend(len(part.rows) for part in parts)
        return fill(parts, weight)

    training.learner.gradients = count
    training.optimizers.step = lambda: found.update(
        {name: weight.grad.clone() for name, weight in training.weights.items() if weight.grad is not None}
    )
    training.step(training.data[0].examples, 1.0)
    return sizes, found


def test_a_text_of_many_windows_is_computed_a_few_at_a_time_with_the_gradients_of_all(place, tmp_path):
    sizes, expected = parts_and_gradients(place, tmp_path / "all", None)
    assert sizes == [8]
    for size, rows in ((3, [3, 3, 2]), (1, [1] * 8)):
        sizes, found = parts_and_gradients(place, tmp_path / f"{size}", size)
        assert sizes == rows
        assert set(found) == set(expected)
        assert all(difference(found[name], grad) < 1e-4 for name, grad in expected.items() if grad.any())


def test_a_window_of_one_token_is_refused():
    with pytest.raises(VLMError, match="max_length is 1; expected at least 2"):
        NextToken(Tokenizer.bytes_only(), 512, 1)
