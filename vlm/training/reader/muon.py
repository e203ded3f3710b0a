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
            for index, weight in enumerate(moved):
                # Momentum is cheap: all keep all of it, so that a run can go on with another number of processes.
                push = self._push(weight, group["momentum"])
                if index % num_ranks == rank:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    step = group["lr"] * ADAM_RMS * math.sqrt(max(weight.shape))
                    weight.sub_(nearest_orthogonal(push), alpha=step)
            waiting = [
                torch.distributed.broadcast(weight.data, index % num_ranks, async_op=True)
                for index, weight in enumerate(moved if several else ())
            ]
            for work in waiting:
                work.wait()

    def _push(self, weight: nn.Parameter, decay: float) -> Tensor:
        """Return Nesterov's momentum of a matrix, having taken its gradient in."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(weight.grad, 1 - decay)
        return weight.grad.lerp(momentum, decay)


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix of orthonormal rows or columns, by a quintic Newton-Schulz iteration."""
    first, third, fifth = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
