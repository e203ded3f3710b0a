"""Muon for several processes on CPUs: steps of matrices along the nearest orthogonal matrix of their momentum.

torch.optim.Muon does the same in one process and in bfloat16, which a CPU without matrix units computes at half of
float32's speed, and every process of a run would repeat all of it. Here each process turns its share of the matrices.
Source: Jordan et al., https://kellerjordan.github.io/posts/muon; the scale of the step is that of arXiv 2502.16982.
"""

import math
from collections.abc import Iterable

import torch
import torch.distributed
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
ADAM_RMS = 0.2
"""Root mean square of a step at learning rate 1, as AdamW's steps have it."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; only for matrices whose gradients are already equal in all processes."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Take one step; matrices without a gradient stay as they are."""
        several = torch.distributed.is_initialized()
        rank, num_ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several else (0, 1)
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            # Momentum is cheap: all keep all of it, so that a run can go on with another number of processes.
            pushes = self._pushes(moved, group["momentum"])
            by_shape: dict[torch.Size, list[int]] = {}
            for index in range(rank, len(moved), num_ranks):
                by_shape.setdefault(moved[index].shape, []).append(index)
            # Those of a shape are turned together: on a GPU the calls cost more than the products.
            for shape, indices in by_shape.items():
                turned = nearest_orthogonal(torch.stack([pushes[index] for index in indices]))
                weights = [moved[index] for index in indices]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                step = group["lr"] * ADAM_RMS * math.sqrt(max(shape))
                torch._foreach_add_(weights, list(turned.unbind()), alpha=-step)
            waiting = [
                torch.distributed.broadcast(weight.data, index % num_ranks, async_op=True)
                for index, weight in enumerate(moved if several else ())
            ]
            for work in waiting:
                work.wait()

    def _pushes(self, weights: list[nn.Parameter], decay: float) -> list[Tensor]:
        """Return Nesterov's momentum of matrices, having taken their gradients in."""
        if not weights:
            return []
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - decay)
        return list(torch._foreach_lerp(gradients, momenta, decay))


def nearest_orthogonal(matrices: Tensor) -> Tensor:
    """Return about the nearest matrices of orthonormal rows or columns to [..., n, m], by a quintic Newton-Schulz
    iteration."""
    first, third, fifth = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.reshape(-1, *matrices.shape[-2:])
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return (x.mT if tall else x).reshape(matrices.shape)
