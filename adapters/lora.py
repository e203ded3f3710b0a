"""Low-rank adapters on any linear layer: y = W x + scale · B A x.

No layer is replaced. One that is adapted gets a child `lora`, which holds its adapters by name, and a hook that adds
what they give to its output. So the layer may be of any class (quantised ones too), its own weights keep their names,
and several adapters add up.
Source: Hu et al., arXiv 2106.09685; the scale of rsLoRA: Kalajdzievski, arXiv 2312.03732.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional

# The layer's own count of changes stays with it when its adapters are gone.
_CHANGES = "num_adapter_changes"


class AdapterError(ValueError):
    """An adapter that cannot be made, or that does not fit the model."""

    code = "invalid_request"


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """The adapters of one fine-tune."""

    rank: int = 16
    """Width of the bottleneck."""
    alpha: float = 32.0
    """Strength; see `scale`."""
    dropout: float = 0.0
    """Share of a layer's input that its adapter does not see while it is trained."""
    rslora: bool = False
    """Divide `alpha` by the square root of the rank, so that large ranks learn as fast as small ones."""
    targets: tuple[str, ...] = ("*_proj",)
    """Which linear layers: patterns with `*` of whole names, or of the last parts of names."""

    def __post_init__(self):
        if self.rank < 1:
            raise AdapterError(f"rank is {self.rank}; expected at least 1; common ranks are 8 to 64")
        if not 0 <= self.dropout < 1:
            raise AdapterError(f"dropout is {self.dropout}; expected at least 0 and below 1; 0.05 is common")
        if isinstance(self.targets, str) or not self.targets:
            raise AdapterError(f"targets is {self.targets!r:.60}; expected a list of names, such as ['q_proj']")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LowRank(nn.Module):
    """One adapter of one layer."""

    def __init__(self, down: Tensor, up: Tensor, config: LoRAConfig):
        super().__init__()
        self.config = config
        self.down = nn.Parameter(down)
        """[rank, in]; `A` in the paper."""
        self.up = nn.Parameter(up)
        """[out, rank]; `B` in the paper."""
        self.strength = 1.0
        """Of this adapter among those that are stacked."""
        self.dropout = functional.dropout
        """Another one where inputs are spread over several processes."""

    @classmethod
    def fresh(cls, layer: nn.Module, config: LoRAConfig) -> "LowRank":
        """Return an adapter that changes nothing yet, in float32 beside the layer's weights."""
        device = next((weight.device for weight in _tensors(layer)), None)
        # Drawn on the CPU, so that a seed gives the same adapter on every device. As nn.Linear's weights, and PEFT's.
        down = nn.init.kaiming_uniform_(torch.empty(config.rank, layer.in_features), a=math.sqrt(5))
        up = torch.zeros(layer.out_features, config.rank)
        return cls(down.to(device), up.to(device), config)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the layer's output for its input x [..., in]."""
        x = self.dropout(x.to(self.down.dtype), self.config.dropout, self.training)
        return functional.linear(functional.linear(x, self.down), self.up) * (self.strength * self.config.scale)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return what the adapter adds to the layer's weight [out, in], in float32."""
        return (self.up.float() @ self.down.float()) * (self.strength * self.config.scale)


class Adapters(nn.ModuleDict):
    """The adapters of one layer, by name."""

    def __init__(self):
        super().__init__()
        self.original: Tensor | None = None
        """The layer's weight before its adapters were merged into it, on the CPU."""
        self.hook = None


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every linear layer of `model` by name: all that has `in_features` and `out_features`."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "in_features", None), int)
        and isinstance(getattr(layer, "out_features", None), int)
    }


def find_layers(names: Iterable[str], targets: Iterable[str]) -> list[str]:
    """Return those of `names` that a target stands for, in their order.

    A target is a pattern of a whole name ("decoder.layers.*.q_proj") or of its last parts ("q_proj", "mlp.*").

    Raises: AdapterError for a target that stands for none.
    """
    names, found = list(names), set()
    for target in targets:
        matched = [name for name in names if fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")]
        if not matched:
            last = sorted({name.rsplit(".", 1)[-1] for name in names})
            near = difflib.get_close_matches(target, last, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(last)!s:.120}"
            raise AdapterError(f"no linear layer is named {target!r:.60}; {hint}")
        found |= set(matched)
    return [name for name in names if name in found]


def add_adapter(model: nn.Module, config: LoRAConfig, *, name: str = "default") -> dict[str, LowRank]:
    """Give the layers that `config.targets` names a fresh adapter each, and return these by layer."""
    layers = linear_layers(model)
    chosen = find_layers(layers, config.targets)
    adapters = {layer: LowRank.fresh(layers[layer], config) for layer in chosen}
    attach(model, name, adapters)
    return adapters


def attach(model: nn.Module, name: str, adapters: Mapping[str, LowRank]) -> None:
    """Put `adapters`, one a layer, on top of those that `model` has already.

    Raises: AdapterError where one has no such layer, does not fit it, or stands on one that was merged.
    """
    layers = linear_layers(model)
    if not name or "." in name or name in adapter_names(model):
        raise AdapterError(f"the adapter is named {name!r:.60}; expected a new name without a dot; give another")
    for place, adapter in adapters.items():
        layer = layers.get(place)
        if layer is None:
            raise AdapterError(f"the adapter has the layer {place:.80}, which the model has not; it is another model's")
        if getattr(layer, "is_shared", False):
            raise AdapterError(
                "the model's layers are shared by several processes, and an adapter has to be there before; merge it "
                "into the model and save that, or let one process answer"
            )
        found, expected = (*adapter.up.shape[:1], *adapter.down.shape[1:]), (layer.out_features, layer.in_features)
        if found != expected:
            raise AdapterError(
                f"the adapter of {place:.80} is for {found}, the layer {expected}; it is another model's"
            )
        if _stack(layer) is not None and _stack(layer).original is not None:
            raise AdapterError("the model's adapters are merged; unmerge them before another is added")
    for place, adapter in adapters.items():
        layer = layers[place]
        if _stack(layer) is None:
            layer.lora = Adapters()
            layer.lora.hook = layer.register_forward_hook(_add_adapters)
        layer.lora[name] = adapter.train(layer.training)
        _count_change(layer)


def adapter_names(model: nn.Module) -> list[str]:
    """Return the names of all adapters of `model`, in the order they were added."""
    return list(dict.fromkeys(name for stack in _stacks(model).values() for name in stack))


def adapters_of(model: nn.Module, name: str) -> dict[str, LowRank]:
    """Return the adapters of one name, by layer."""
    return {place: stack[name] for place, stack in _stacks(model).items() if name in stack}


def set_strength(model: nn.Module, name: str, strength: float) -> None:
    """Let the adapters of one name count `strength` times among those that are stacked.

    Raises: AdapterError where there are none, or where they are merged.
    """
    for layer in _layers_of(model, name):
        layer.lora[name].strength = float(strength)
        _count_change(layer)


def remove(model: nn.Module, name: str) -> None:
    """Take the adapters of one name away.

    Raises: AdapterError where there are none, or where they are merged.
    """
    for layer in _layers_of(model, name):
        del layer.lora[name]
        _count_change(layer)
        if not layer.lora:
            _drop(layer)


@torch.no_grad()
def merge(model: nn.Module, *, keep_original: bool = True) -> None:
    """Add all adapters into the weights of their layers, so that they cost no time.

    keep_original: keep the weights as they were, on the CPU, for `unmerge`; otherwise the adapters are dropped, those
        that are merged already too.

    Raises: AdapterError, with no layer changed, where one is quantised.
    """
    layers = {place: model.get_submodule(place) for place in _stacks(model)}
    for place, layer in layers.items():
        if layer.lora.original is None and layer._parameters.get("weight") is None:
            raise AdapterError(f"{place:.80} is quantised and cannot take an adapter in; merge before you quantise")
    for layer in layers.values():
        stack, weight = layer.lora, layer._parameters.get("weight")
        if stack.original is None:
            if keep_original:
                stack.original = weight.detach().to("cpu", copy=True)
            # A layer that is streamed lies on the CPU, its adapters on the GPU.
            weight.copy_(weight.float() + sum(adapter.delta().to(weight.device) for adapter in stack.values()))
            # What is computed in one call (`vlm.native`) passes over layers with a hook.
            stack.hook.remove()
            _count_change(layer)
        if not keep_original:
            _drop(layer)


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Undo `merge`: every weight is bit for bit what it was, and the adapters add to the outputs again."""
    for place, stack in _stacks(model).items():
        if stack.original is not None:
            layer = model.get_submodule(place)
            layer.weight.copy_(stack.original)
            stack.original, stack.hook = None, layer.register_forward_hook(_add_adapters)
            _count_change(layer)


def state(model: nn.Module) -> tuple[tuple[str, str, float, bool], ...]:
    """Return the layer, name and strength of every adapter of `model`, and whether it is merged."""
    return tuple(
        (place, name, adapter.strength, stack.original is not None)
        for place, stack in _stacks(model).items()
        for name, adapter in stack.items()
    )


def num_changes(model: nn.Module) -> int:
    """Return how often adapters of `model` were added, weighted, merged, unmerged or removed, a layer at a time.

    Unlike `state` it tells an adapter from a later one of the same name, and knows of those that were merged for good.
    """
    return sum(vars(layer).get(_CHANGES, 0) for layer in model.modules())


def _add_adapters(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    for adapter in layer.lora.values():
        output = output + adapter(inputs[0]).to(output.dtype)
    return output


def _layers_of(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the layers that have an adapter of this name. Raises: AdapterError where none has, or one is merged."""
    places = [place for place, stack in _stacks(model).items() if name in stack]
    layers = [model.get_submodule(place) for place in places]
    if not layers:
        shown = ", ".join(adapter_names(model)) or "none"
        raise AdapterError(f"no adapter is named {name!r:.60}; the model has {shown:.120}")
    if any(layer.lora.original is not None for layer in layers):
        raise AdapterError(f"adapter {name!r:.60} is merged; unmerge the adapters before one is changed or removed")
    return layers


def _count_change(layer: nn.Module) -> None:
    setattr(layer, _CHANGES, vars(layer).get(_CHANGES, 0) + 1)


def _stack(layer: nn.Module) -> Adapters | None:
    found = layer._modules.get("lora")
    return found if isinstance(found, Adapters) else None


def _stacks(model: nn.Module) -> dict[str, Adapters]:
    return {name: stack for name, layer in model.named_modules() if (stack := _stack(layer)) is not None}


def _drop(layer: nn.Module) -> None:
    layer.lora.hook.remove()
    del layer.lora


def _tensors(layer: nn.Module) -> Iterable[Tensor]:
    yield from layer.parameters()
    yield from layer.buffers()
