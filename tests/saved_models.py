"""A small text-only model and its folders, for the tests of checkpoints that are broken or half written."""

from pathlib import Path

from tests.checkpoint_models import random_model, text_config
from vlm.checkpoint import save_model

MODEL = random_model(text_config())
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def saved(folder: Path, **named) -> Path:
    """Save the model, in one file unless `named` says otherwise to `save_model`, and return the folder."""
    save_model(MODEL, folder, **named)
    return folder
