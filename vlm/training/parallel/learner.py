"""The gradients of a step: of one process alone, of its share of the data, or of its part of each layer.

What is wrapped by DDP or FSDP2 is not the model but its loss: an objective calls the model's parts as it likes, and
both have to see where a pass begins and ends.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from adapters.cross_attention import GatedCrossAttentionLayer
from vlm.model import VisionLanguageModel
from vlm.training.data.batches import Example
from vlm.training.objectives import Objective
from vlm.training.parallel.shares import Part


class Loss(nn.Module):
    """An objective and what it trains, as one module."""

    def __init__(self, model: VisionLanguageModel, objective: Objective, *, bf16: bool = False):
        super().__init__()
        self.model, self.objective, self.bf16 = model, objective, bf16
        self.beside = nn.ParameterList(objective.weights.values())

    def forward(self, examples: Sequence[Example]) -> Tensor:
        with self.precision(), warnings.catch_warnings():
            # FSDP2 warns of outputs that are views, lest they be changed in place; nothing here is.
            warnings.filterwarnings("ignore", message=".*returned a view tensor")
            return self.objective.loss(self.model, examples)

    def precision(self) -> torch.autocast:
        """Return the precision in which the forward pass is computed."""
        device = self.model.decoder.embedding.weight.device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)


class Learner:
    """Fills the gradients of one step."""

    def __init__(self, loss: nn.Module, num_shares: int = 1):
        """`num_shares`: how many processes share the data, over which DDP and FSDP2 take the mean."""
        self.loss, self.num_shares = loss, num_shares

    def gradients(self, parts: Sequence[Part], weight: float) -> float:
        """Add the gradients of `parts` to those that the weights have, and return their loss, divided by `weight`."""
        total = 0.0
        for part in parts:
            # Divided by the weight of the whole step: parts of unequal length then add up to its mean.
            loss = self.loss(part.examples) / weight
            if not part.counts:
                loss = loss * 0
            if loss.requires_grad:
                (loss * self.num_shares).backward()
            total += float(loss.detach())
        return total


def replicate(loss: Loss, mesh: DeviceMesh) -> Learner:
    """Return a learner whose processes all have all weights (DDP)."""
    # Buffers are quantised weights, which nothing changes; sent along at every step they would cost as much as a model.
    buffers = [name for name, _ in loss.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, buffers)
    # A step without images leaves the encoder without gradients, in one process as in several.
    wrapped = DistributedDataParallel(loss, process_group=mesh.get_group(), find_unused_parameters=True)
    return Learner(wrapped, mesh.size())


def shard(loss: Loss, mesh: DeviceMesh) -> Learner:
    """Return a learner whose processes have a share of every weight each, and gather a layer's while they are in it."""
    model = loss.model
    for layer in model.decoder.layers:
        if isinstance(layer, GatedCrossAttentionLayer):
            # Entered twice: for the keys and values of the images, and for the text.
            fully_shard(layer.attention, mesh=mesh)
            register_fsdp_forward_method(layer.attention, "project")
        fully_shard(layer, mesh=mesh)
    if model.encoder is not None:
        # As one: pictures of unequally many tiles go through its layers one kind after the other, and processes would
        # not enter them equally often.
        fully_shard(model.encoder, mesh=mesh)
    fully_shard(loss, mesh=mesh)
    return Learner(loss, mesh.size())
