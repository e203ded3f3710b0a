"""The wires of the reader's decoder: what is found hands on where to look for what is copied."""

import pytest
import torch

from vlm.config import preset
from vlm.training.reader.model import Reader
from vlm.training.reader.sinusoids import sinusoids
from vlm.training.reader.wires import SHADE_LOUDNESS, cross_attentions, partner_dims, shade_code, shade_dims


@pytest.fixture
def model():
    return Reader(preset("default")).model


@pytest.fixture
def own(model) -> slice:
    """The dims of an image token that tell its place."""
    return slice(model.config.decoder.head_dim)


@pytest.fixture
def places(model, own) -> torch.Tensor:
    """Those of 28 x 28 patches."""
    rows, cols = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    return sinusoids(rows.flatten(), cols.flatten(), model.config.vision.width)[:, -own.stop :]


def copied(model, tokens, *found: int):
    """Return how much the two heads that copy look at each of `tokens` once two heads have found two of them."""
    find, copy, _ = cross_attentions(model)
    taken = torch.zeros(1, 1, 4, model.config.decoder.head_dim)
    taken[0, 0, :2] = find.project(tokens).values[0, 0, list(found)]
    x = find.o_proj(taken.flatten(2)) + 0.1 * torch.randn(1, 1, model.config.decoder.width)
    return (copy.queries(x)[0, :2] @ copy.project(tokens).keys[0, 0].T)[:, 0]


def test_what_is_found_hands_its_partners_place_on_to_what_copies(model, own, places):
    tokens = torch.randn(1, 28 * 28, model.config.decoder.width)
    tokens[0, :, own] = places
    pairs = torch.tensor([[5 * 28 + 3, 20 * 28 + 9], [11 * 28 + 17, 11 * 28 + 24]])
    tokens[0, pairs, partner_dims(model)] = places[pairs.flip(1)]
    tokens[0, :, shade_dims(model)] = 0
    for found, copies in (pairs.T, pairs.T.flip(0)):
        assert copied(model, tokens, *found).argmax(-1).tolist() == copies.tolist()


def test_of_a_labels_values_the_one_of_the_legend_entrys_shade_is_copied_wherever_it_stands(model, own, places):
    tokens = torch.zeros(1, 28 * 28, model.config.decoder.width)
    # About as loud as a trained reader tells them; where nothing is printed, anything.
    tokens[0, :, own] = places / 3
    tokens[0, :, partner_dims(model)] = 2 * places[torch.randperm(28 * 28)]
    tokens[0, :, shade_dims(model)] = SHADE_LOUDNESS * shade_code(torch.rand(28 * 28, 3))
    blue, red = (SHADE_LOUDNESS * shade_code(torch.tensor(shade) / 255) for shade in ((40, 118, 221), (214, 39, 40)))
    entry, label, next_label = 2 * 28 + 4, 24 * 28 + 9, 24 * 28 + 18
    values = {label: (12 * 28 + 8, 3 * 28 + 11), next_label: (14 * 28 + 17, 20 * 28 + 20)}
    for at, pair in values.items():
        # A label knows but one of its values; each value knows its label.
        tokens[0, at, partner_dims(model)] = 1.5 * places[pair[0]]
        tokens[0, list(pair), partner_dims(model)] = 1.5 * places[at]
        tokens[0, list(pair), shade_dims(model)] = torch.stack([blue, red])
    for shade, which in ((blue, 0), (red, 1)):
        tokens[0, entry, shade_dims(model)] = shade
        for at, pair in values.items():
            assert copied(model, tokens, at, entry)[0].argmax() == pair[which]


def test_a_value_that_knows_its_label_is_copied_rather_than_one_that_the_label_takes_for_its_own(model, own, places):
    tokens = torch.zeros(1, 28 * 28, model.config.decoder.width)
    label, value, taken, elsewhere = 24 * 28 + 9, 12 * 28 + 8, 3 * 28 + 20, 15 * 28 + 15
    tokens[0, :, own] = places
    tokens[0, :, partner_dims(model)] = places[elsewhere]
    tokens[0, [label, value], partner_dims(model)] = places[[taken, label]]
    assert copied(model, tokens, label, label).argmax(-1).tolist() == [value, value]
    tokens[0, value, partner_dims(model)] = places[elsewhere]
    assert copied(model, tokens, label, label).argmax(-1).tolist() == [taken, taken]
