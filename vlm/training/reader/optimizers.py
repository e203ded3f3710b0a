"""What trains a reader: Muon for the matrices inside the model, AdamW for vectors, embedding and heads."""

import torch
from torch import nn

from vlm.training.reader.model import Reader
from vlm.training.reader.muon import Muon

PEAK_RATES = (1e-2, 2e-3)
"""Of Muon and of AdamW."""
Optimizers = tuple[Muon, torch.optim.AdamW]


def optimizers_of(reader: Reader) -> Optimizers:
    """Return the optimizers of what has gradients, at a rate of zero."""
    matrices, others = _split(reader)
    return (
        Muon(matrices, lr=0.0, weight_decay=0.4),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )


def set_rates(optimizers: Optimizers, share: float) -> None:
    """Set the learning rates to a share of their peaks."""
    for optimizer, peak in zip(optimizers, PEAK_RATES, strict=True):
        optimizer.param_groups[0]["lr"] = share * peak


def _split(reader: Reader) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return what Muon trains, and what AdamW trains."""
    named = [(name, weight) for name, weight in reader.named_parameters() if weight.requires_grad]
    inner = [
        weight for name, weight in named if weight.ndim == 2 and "decoder.embedding" not in name and "head" not in name
    ]
    chosen = {id(weight) for weight in inner}
    return inner, [weight for _, weight in named if id(weight) not in chosen]
