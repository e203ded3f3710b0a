"""Weights that are set once and not trained."""

from torch import Tensor, nn


def hold(parameter: nn.Parameter, place: slice | tuple[slice, ...]) -> None:
    """Let no gradient change what lies at `place`."""

    def without(gradient: Tensor | None) -> Tensor | None:
        # In a run on several processes what led to a loss that does not count has a gradient of None.
        if gradient is None:
            return None
        gradient = gradient.clone()
        gradient[place] = 0
        return gradient

    parameter.register_hook(without)
