"""Weights that are set once and not trained."""

from torch import Tensor, nn


def hold(parameter: nn.Parameter, place: slice | tuple[slice, ...]) -> None:
    """Let no gradient change what lies at `place`."""

    def without(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[place] = 0
        return gradient

    parameter.register_hook(without)
