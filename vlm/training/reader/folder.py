"""A reader in a model's folder, as it ships."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm.config import preset
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.training.reader.model import Reader
from vlm.training.reader.sinusoids import retile
from vlm.training.reader.start import kept_apart
from vlm.training.reader.vocabulary import reader_tokenizer
from vlm.training.reader.wires import is_wired

TEMPERATURE = 1.4
"""What a reader's logits are divided by once it is trained: it is surer of itself than it is right. Chosen on drawn
charts by the distance of confidence and accuracy."""


def load_reader(folder: Path) -> Reader:
    """Return a reader with the weights of a folder, to be trained further; its heads begin anew, with no opinion.

    Raises: VLMError with `invalid_request` where its recipe was another; else as `VLM.from_pretrained`.
    """
    reader, trained = Reader(preset("default")), VLM.from_pretrained(folder, device="cpu", dtype=torch.float32).model
    if trained.config.exact() != reader.model.config.exact() or not (kept_apart(trained.encoder) and is_wired(trained)):
        raise VLMError(
            "invalid_request",
            f"{folder.name} is of an older recipe: other sizes or wires, or layers that write over positions and "
            "colours; start from nothing, or from a reader of this one",
        )
    reader.model.load_state_dict(without_positions(trained), strict=False)
    with torch.no_grad():
        reader.model.decoder.norm.weight *= TEMPERATURE
    for head in (reader.character_head, reader.order_head, reader.beginning_head):
        # At random they would begin worse than by chance, and push the encoder about; so they learn alone at first.
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return reader


def save_reader(reader: Reader, folder: Path) -> None:
    """Write the model as it ships: without its heads, for pictures of up to four tiles, bfloat16, as sure as right."""
    model: VisionLanguageModel = copy.deepcopy(reader.model).cpu()
    retile(model, preset("default").vision)
    with torch.no_grad():
        model.decoder.norm.weight /= TEMPERATURE
    VLM(model.to(torch.bfloat16), reader_tokenizer()).save_pretrained(folder)


def without_positions(module: nn.Module) -> dict[str, Tensor]:
    """Return what was learned: positions depend on the tile alone."""
    return {name: weight for name, weight in module.state_dict().items() if "position" not in name}
