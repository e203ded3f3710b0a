"""Which weights a run trains: all, named parts of the model, or adapters on top of frozen ones."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from adapters.cross_attention import GatedCrossAttentionLayer
from adapters.lora import AdapterError, LoRAConfig, add_adapter
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel

ADAPTER = "default"
PARTS = ("all", "encoder", "projector", "cross_attention", "decoder", "embedding", "head")


def train_parts(model: VisionLanguageModel, parts: Iterable[str]) -> None:
    """Train the weights that `parts` name and freeze the others.

    A part is one of PARTS ("decoder" is all of the text decoder without its cross-attention) or a pattern of weights.
    """
    chosen = set()
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        matched = _weights(model, part, names)
        if not matched:
            near = difflib.get_close_matches(part, PARTS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(PARTS)} or a pattern of weights"
            raise VLMError("invalid_request", f"trained.parts names {part!r:.60}, of which this model has none; {hint}")
        chosen |= set(matched)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in chosen)


def train_adapter(model: VisionLanguageModel, config: LoRAConfig) -> None:
    """Freeze the model and train a fresh low-rank adapter on top of it."""
    model.requires_grad_(False)
    try:
        add_adapter(model, config, name=ADAPTER)
    except AdapterError as error:
        raise VLMError(error.code, f"trained.lora: {error}") from None


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _weights(model: VisionLanguageModel, part: str, names: list[str]) -> list[str]:
    if part == "all":
        return names
    cross = tuple(
        f"decoder.layers.{place}."
        for place, layer in enumerate(model.decoder.layers)
        if isinstance(layer, GatedCrossAttentionLayer)
    )
    prefixes = {
        "encoder": ("encoder.",),
        "projector": ("projector.",),
        "cross_attention": cross,
        "decoder": ("decoder.",),
        "embedding": ("decoder.embedding.",),
        "head": ("decoder.head.",),
    }.get(part)
    if prefixes is None:
        return [name for name in names if fnmatchcase(name, part)]
    found = [name for name in names if name.startswith(prefixes)] if prefixes else []
    return [name for name in found if part != "decoder" or not cross or not name.startswith(cross)]
