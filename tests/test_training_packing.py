"""Samples side by side in one row: the numbers are those of each alone."""

import pytest
import torch

from tests.nearness import difference
from tests.oracles import ours
from tests.oracles.cases import CONFIGS, build_case
from tests.oracles.weights import random_hf_state
from tests.training_rows import row_of
from vlm.training.packing import fit
from vlm.training.rows import Row, hidden_states, reply_log_probabilities

CONFIG = CONFIGS["default"]
NAMES = ("text_only", "one_tile_first", "two_images_of_other_grids", "one_tile_middle", "three_images", "text_only")


@pytest.fixture(scope="module")
def model():
    return ours.build(*random_hf_state(CONFIG))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [row_of(build_case(CONFIG, name), CONFIG.vocab_size, first_learned=4) for name in NAMES]


@pytest.mark.parametrize("pack", [1, 40, 10_000])
def test_packed_losses_and_gradients_are_those_of_each_alone(model, rows, pack):
    found, grads = [], []
    for length in (None, pack):
        model.zero_grad()
        totals = reply_log_probabilities(model, rows, CONFIG.marker, length)
        totals.sum().backward()
        found.append(totals.detach())
        grads.append(
            {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        )
    assert difference(found[1], found[0]) < 1e-5
    assert set(grads[0]) == set(grads[1])
    for name, grad in grads[0].items():
        if grad.any():
            assert difference(grads[1][name], grad) < 1e-4, name


@torch.no_grad()
def test_a_text_and_its_images_change_nothing_for_those_beside_it(model, rows):
    # The longest stands first in its row, so that all others could see it.
    rows = [row for row in rows if row.images]
    first = max(range(len(rows)), key=lambda place: len(rows[place].ids))
    changed = list(rows)
    changed[first] = Row(
        ids=[token_id if token_id == CONFIG.marker else 7 for token_id in rows[first].ids],
        targets=rows[first].targets,
        images=[image._replace(pixels=image.pixels + 1) for image in rows[first].images],
    )
    before, after = (hidden_states(model, those, CONFIG.marker, 10_000) for those in (rows, changed))
    for place, row in enumerate(rows):
        one, other = (states[place, : len(row.ids)] for states in (before, after))
        assert torch.equal(one, other) == (place != first)


def test_the_longest_texts_are_placed_first():
    assert fit([3, 9, 4, 2, 12], 10) == [[4], [1], [2, 0, 3]]
