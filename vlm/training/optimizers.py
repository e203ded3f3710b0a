"""The optimizers of a run: AdamW, or torch's Muon for the matrices inside the model and AdamW for the rest."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from vlm.errors import VLMError
from vlm.training.config import OptimizerConfig
from vlm.training.parallel.clipping import clip_gradients, mesh_of
from vlm.training.parallel.world import World

_NO_MUON = ("decoder.embedding.*", "decoder.head.*", "*table", "*patch_position.embedding", "value_head.*")
"""Matrices that are looked up in or end in the vocabulary: Muon is for maps from activations to activations."""


class Optimizers:
    """All optimizers of a run as one."""

    def __init__(self, weights: Mapping[str, nn.Parameter], config: OptimizerConfig, world: World | None = None):
        self.weights, self.world = dict(weights), world or World.alone()
        self.clip_norm = config.clip_norm
        by_muon, others = _groups(weights, config)
        self._parts: list[torch.optim.Optimizer] = []
        if by_muon:
            # Steps as large as AdamW's, so that one learning rate serves both; arXiv 2502.16982.
            muon = {"momentum": config.momentum, "adjust_lr_fn": "match_rms_adamw"}
            self._parts.append(torch.optim.Muon(by_muon, lr=config.lr, **muon))
        if others:
            betas = (config.beta1, config.beta2)
            self._parts.append(torch.optim.AdamW(others, lr=config.lr, betas=betas, eps=config.eps))

    def set_share(self, share: float) -> None:
        """Set every learning rate to `share` of its peak."""
        for group in self._all_groups():
            group["lr"] = share * group["peak_lr"]

    def clip(self) -> Tensor:
        """Return the norm of all gradients together, having cut them to the largest allowed one."""
        return clip_gradients(self.weights.values(), self.clip_norm or float("inf"), self.world)

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return what is remembered of each weight, by its name; of one that never moved, nothing."""
        remembered = {weight: state for part in self._parts for weight, state in part.state.items()}
        return {name: dict(remembered[weight]) for name, weight in self.weights.items() if weight in remembered}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for part in self._parts:
            moved = {weight for group in part.param_groups for weight in group["params"]}
            for name, weight in self.weights.items():
                if weight in moved and name in state:
                    part.state[weight] = dict(state[name])

    def _all_groups(self) -> Iterable[dict]:
        return (group for part in self._parts for group in part.param_groups)


def _groups(weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> tuple[list[dict], list[dict]]:
    """Return the weights that Muon steps and those that AdamW steps, in groups of one learning rate and one decay."""
    unused = {group.match for group in config.groups}
    found: dict[tuple, list[nn.Parameter]] = {}
    for name, weight in weights.items():
        own = next((group for group in config.groups if fnmatchcase(name, group.match)), None)
        unused.discard(own.match if own else None)
        lr = config.lr if own is None or own.lr is None else own.lr
        decay = config.weight_decay if own is None or own.weight_decay is None else own.weight_decay
        # Norms, biases and gates are not pulled to zero.
        decay = decay if weight.ndim > 1 else 0.0
        by_muon = config.name == "muon" and weight.ndim == 2 and not any(fnmatchcase(name, other) for other in _NO_MUON)
        found.setdefault((lr, decay, by_muon, mesh_of(weight)), []).append(weight)
    if unused:
        raise VLMError(
            "invalid_request",
            f"optimizer.groups matches no trained weight with {', '.join(sorted(unused))!s:.80}; "
            "expected patterns of names, such as encoder.*",
        )
    groups: tuple[list[dict], list[dict]] = [], []
    for (lr, decay, by_muon, _), params in found.items():
        groups[0 if by_muon else 1].append({"params": params, "peak_lr": lr, "weight_decay": decay})
    return groups
