"""How far a result is from its oracle's, in units of the oracle's largest value."""

from torch import Tensor


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference over the largest expected value; NaN where either holds one."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
