"""A model without weights: names and shapes only."""

import torch
from torch.overrides import TorchFunctionMode

from vlm.config import ModelConfig
from vlm.model import VisionLanguageModel


def empty_model(config: ModelConfig) -> VisionLanguageModel:
    """Return the model on the meta device, in which tensors have shapes and no values."""
    with torch.device("meta"), _NoValues():
        return VisionLanguageModel(config)


class _NoValues(TorchFunctionMode):
    """Skips the drawing of initial weights.

    Without values there is nothing to draw, and on the meta device it would make torch import its decompositions:
    900 modules, 150 MB and seconds.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_, torch.nn.init.normal_, torch.nn.init.uniform_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        if func in (torch.Tensor.mul, torch.Tensor.__rmul__):
            return args[0]
        return func(*args, **kwargs)
