"""Which layers of a model are quantised, and how finely each."""

from dataclasses import dataclass, replace

from torch import nn

from vlm.config import ModelConfig
from vlm.errors import VLMError, shown
from vlm.model import VisionLanguageModel

PRECISIONS = ("int8", "int4")
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the weights of one layer are stored: whole numbers, and a scale for each group of them."""

    bits: int
    """4 or 8."""
    group_size: int | None = None
    """Weights of one row that share a scale; None: the whole row does."""
    symmetric: bool = True
    """Whether the number 0 stands for the weight 0; otherwise each group has a zero point."""

    def __post_init__(self):
        if self.bits not in (4, 8):
            raise ValueError(f"bits is {self.bits}; expected 4 or 8")

    def __str__(self) -> str:
        groups = "a scale a row" if self.group_size is None else f"in groups of {self.group_size}"
        return f"int{self.bits} {groups}" + ("" if self.symmetric else " with zero points")

    def num_groups(self, in_features: int) -> int:
        """Return how many scales a row has."""
        return 1 if self.group_size is None else in_features // self.group_size

    def num_bytes(self, out_features: int, in_features: int) -> int:
        """Return the bytes of a layer in memory at most, with scales of 16 bits.

        At 4 bits torch's product keeps an offset beside each; ours does not, unless there are zero points.
        """
        per_group = 2 if self.bits == 8 else 4
        return out_features * (in_features * self.bits // 8 + self.num_groups(in_features) * per_group)


def check_precision(precision: object) -> None:
    """Raise VLMError where `precision` is neither None nor one that is offered."""
    if precision is not None and not (isinstance(precision, str) and precision in PRECISIONS):
        raise VLMError(
            "invalid_request", f"quantize is {shown(precision)}; give None, {' or '.join(map(repr, PRECISIONS))}"
        )


def quantized_config(config: ModelConfig) -> ModelConfig:
    """Return the config that a model has once it is quantised: a head that was its embedding becomes one of its own.

    A token reads all of a head and one row of an embedding, so the head is worth 8 bits, which the embedding is not.
    """
    return replace(config, decoder=replace(config.decoder, tied=False))


def plan(model: VisionLanguageModel, precision: str, group_size: int = GROUP_SIZES[0]) -> dict[str, Scheme]:
    """Return the scheme of each layer that is quantised, by its name in `model`: every linear layer of the decoder.

    model: of a `quantized_config`.
    group_size: weights that share a scale at 4 bits. Smaller is more exact and larger.
    """
    check_precision(precision)
    if group_size not in GROUP_SIZES:
        raise VLMError(
            "invalid_request", f"group_size is {shown(group_size)}; give one of {', '.join(map(str, GROUP_SIZES))}"
        )
    return {
        f"decoder.{name}": _scheme(precision, name, layer.in_features, group_size)
        for name, layer in model.decoder.named_modules()
        if isinstance(layer, nn.Linear)
    }


def _scheme(precision: str, layer: str, in_features: int, group_size: int) -> Scheme:
    """The one rule: at 4 bits the largest group up to `group_size` that divides a row; the head, and rows that none
    divides, have 8 bits and a scale a row."""
    if precision == "int4" and layer != "head":
        for size in GROUP_SIZES:
            if size <= group_size and in_features % size == 0:
                return Scheme(bits=4, group_size=size)
    return Scheme(bits=8)
