"""Models between processes."""

import pickle

import torch

from tests.checkpoint_models import assert_same
from vlm import VisionLanguageModel, preset


def test_a_model_goes_through_pickle_and_inspects_its_tables_afterwards():
    model = VisionLanguageModel(preset("tiny"))
    again = pickle.loads(pickle.dumps(model))
    assert_same(again, model)
    state = model.state_dict()
    state["encoder.patch_position.table"] = torch.randn_like(state["encoder.patch_position.table"])
    again.load_state_dict(state)
    assert not again.encoder.missing_tiles_equal
