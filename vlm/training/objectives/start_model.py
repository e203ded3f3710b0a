"""The model as it was when a run began, to measure how far it has gone since."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adapters.lora import adapter_names, set_strength
from vlm.model import VisionLanguageModel


class StartModel:
    """A second copy of a model, or where adapters alone are trained the same model with them switched off."""

    def __init__(self, model: VisionLanguageModel, device: torch.device):
        """`device`: where the model is going to be trained."""
        self._copy = None if adapter_names(model) else copy.deepcopy(model).requires_grad_(False).to(device)

    @contextmanager
    def of(self, model: VisionLanguageModel) -> Iterator[VisionLanguageModel]:
        """Yield what `model`, whose copy or base this is, was at the start."""
        if self._copy is not None:
            yield self._copy
            return
        names = adapter_names(model)
        for name in names:
            set_strength(model, name, 0.0)
        try:
            yield model
        finally:
            for name in names:
                set_strength(model, name, 1.0)
