"""Models of true shapes with random weights, made tensor by tensor: speed does not ask what weights mean."""

import torch
from torch import Tensor

from vlm.checkpoint import empty_model
from vlm.config import ModelConfig
from vlm.model import VisionLanguageModel
from vlm.native import in_large_pages
from vlm.quantization import PRECISIONS, QuantizedLinear, plan, quantized_config, quantized_layers
from vlm.quantization.linear import arrange_layers, put_quantized_layers

_BLOCK = 1 << 20


def random_model(config: ModelConfig, precision: str = "bfloat16", device: str = "cpu") -> VisionLanguageModel:
    """Return a model in bfloat16, its decoder quantised where `precision` says so."""
    model = shaped_model(config, precision)
    state = {name: random_tensor(model, name).to(device) for name in model.state_dict()}
    model.load_state_dict(state, strict=True, assign=True)
    arrange_layers(model)
    return model.eval().requires_grad_(False)


def shaped_model(config: ModelConfig, precision: str) -> VisionLanguageModel:
    """Return the model without weights."""
    if precision not in PRECISIONS:
        return empty_model(config)
    model = empty_model(quantized_config(config))
    put_quantized_layers(model, plan(model, precision))
    return model


def random_tensor(model: VisionLanguageModel, name: str) -> Tensor:
    """Return values for the tensor called `name`, of a size that keeps the numbers of a deep model in range."""
    place, _, part = name.rpartition(".")
    owner = model.get_submodule(place)
    shape = getattr(owner, part).shape
    if isinstance(owner, QuantizedLinear) and part == "codes":
        return _repeated(torch.randint(0, 256, (_BLOCK,), dtype=torch.uint8), shape).view(owner.codes.dtype)
    if isinstance(owner, QuantizedLinear) and part == "scales":
        return torch.full(shape, owner.in_features**-0.5 / 2 ** (owner.scheme.bits - 1), dtype=torch.bfloat16)
    if part == "table":
        # Places for tiles and patches that no picture uses are equal in every published checkpoint.
        return torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return torch.full(shape, 0.0 if part == "bias" else 0.5, dtype=torch.bfloat16)
    return _repeated((torch.randn(_BLOCK) * shape[-1] ** -0.5).bfloat16(), shape)


def weights_read(model: VisionLanguageModel, *, with_image: bool) -> int:
    """Return the bytes of the weights that a decoded token reads: all matrices it is multiplied with."""
    decoder = model.decoder
    layers = [layer for layer in decoder.layers if with_image or not hasattr(layer, "attention_gate")]
    quantized = set(quantized_layers(model).values())
    total = 0
    for owner in [*layers, decoder.head if decoder.head is not None else decoder.embedding]:
        for name, part in owner.named_modules():
            # Keys and values of images are made once a picture.
            if hasattr(owner, "attention_gate") and name.endswith(("k_proj", "v_proj")):
                continue
            own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
            total += part.num_bytes if part in quantized else sum(tensor.nbytes for tensor in own)
    return total


def _repeated(block: Tensor, shape: torch.Size) -> Tensor:
    """Return a tensor of `shape` filled with `block` over and over: drawing each number would take minutes."""
    out = in_large_pages(torch.empty(shape.numel(), dtype=block.dtype))
    for part in out.split(len(block)):
        part.copy_(block[: len(part)])
    return out.view(shape)
