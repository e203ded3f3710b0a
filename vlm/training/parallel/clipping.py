"""The norm of gradients that lie in several processes."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlm.training.parallel.world import World


def clip_gradients(weights: Iterable[nn.Parameter], limit: float, world: World) -> Tensor:
    """Return the norm of all gradients of the run together, having cut them to `limit`."""
    groups: dict[object, list[nn.Parameter]] = {}
    for weight in weights:
        if weight.grad is not None:
            groups.setdefault(mesh_of(weight), []).append(weight)
    total = torch.zeros((), device=world.device)
    for mesh, group in groups.items():
        norm = nn.utils.get_total_norm([weight.grad for weight in group])
        total = total + (norm if mesh is None else norm.full_tensor()) ** 2
    if world.extent("pipeline") > 1:
        dist.all_reduce(total, group=world.mesh["pipeline"].get_group())
    total = total.sqrt()
    for group in groups.values():
        nn.utils.clip_grads_with_norm_(group, limit, total)
    return total


def mesh_of(weight: Tensor) -> object:
    """Return the processes among which a weight is cut; None for one that each has whole.

    Weights of one kind go together: torch's functions on lists of tensors take no mixtures.
    """
    return weight.device_mesh if isinstance(weight, DTensor) else None
