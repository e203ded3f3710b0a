"""What all layers of a decoder make of one token, in one call: its products take less time than a thousand calls do.

The same functions one after the other, with the same roundings: bit for bit what the layers give one by one.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vlm.native.binding import is_plain, library, product_table
from vlm.native.functions import RMSNorm, vectors, weights_of


class AllLayersKV(NamedTuple):
    """Keys and values of all layers of a kind."""

    keys: Tensor
    """[layers, 1, g, l, e] in bfloat16 or int8"""
    values: Tensor
    scales: tuple[Tensor, Tensor] | None
    """[layers, 1, g, l] of the keys and of the values; None unless these are int8."""
    length: int
    """How many positions there are, that of the token itself among them where they are the text's."""


class DecodeStep:
    """The layers of a decoder, made ready. It holds places of memory, so it is right for one state of them alone."""

    def __init__(self, state: tuple, layers: list[tuple[list[Tensor], list[array]]]):
        self.state, self.layers = state, layers
        self._table = array("q")
        for numbers, products in layers:
            norm, mlp_norm, *seeing = (number.data_ptr() for number in numbers)
            places = [table.buffer_info()[0] for table in products]
            self._table.extend((norm, mlp_norm, *places, *(seeing or (0, 0, 0))))

    def __deepcopy__(self, memo: object) -> None:
        return None

    def run(
        self,
        x: Tensor,
        text: AllLayersKV,
        pictures: AllLayersKV | None,
        angles: tuple[Tensor, Tensor],
        heads: int,
        eps: float,
    ) -> Tensor | None:
        """Return what the layers make of x [1, 1, d], keys and values of the text written; None where torch has to.

        pictures: None leaves the layers that look at pictures out.
        angles: cosines and sines of the token's place, [1, 1, 1, e] in float32.
        """
        tables = [None if kept is None else _kept_table(x, kept) for kept in (text, pictures)]
        if not is_plain(x) or tables[0] is None or (pictures is not None and tables[1] is None):
            return None
        out = x.clone(memory_format=torch.contiguous_format)
        groups, head_dim = text.keys.shape[2], text.keys.shape[4]
        if library().decode_step(
            out.data_ptr(), self._table.buffer_info()[0], len(self.layers),
            *(None if table is None else table.buffer_info()[0] for table in tables),
            heads, groups, head_dim, *(each.data_ptr() for each in angles), eps, torch.get_num_threads(),
        ):  # fmt: skip
            raise MemoryError("no memory for a decode step")
        return out


def decode_step(layers: nn.ModuleList, x: Tensor, last: DecodeStep | None) -> DecodeStep | None:
    """Return `layers` made ready for x [1, 1, d]: `last`, where that still holds; None where torch has to."""
    if _has_any_global_hook() or torch.is_grad_enabled() or (state := _state_of(layers)) is None:
        return None
    if last is not None and last.state == state:
        return last
    ready = [_ready(layer, x) for layer in layers]
    return None if None in ready else DecodeStep(state, ready)


def _state_of(layers: nn.ModuleList) -> tuple | None:
    """Return what tells whether weights are still what and where they were; None where hooks would be passed over."""
    state = []
    for layer in layers:
        for part in _parts(layer):
            if part._forward_hooks or part._forward_pre_hooks:
                return None
            weight = part._parameters.get("weight")
            weight = part._buffers.get("codes") if weight is None else weight
            if weight is not None:
                state += (type(part), weight.data_ptr(), weight.dtype)
    return tuple(state)


def _parts(layer: nn.Module) -> Iterator[nn.Module]:
    """Yield a layer and all in it. Not `modules()`, which takes longer than all the rest of a step in Python."""
    yield layer
    for part in layer._modules.values():
        yield part
        yield from part._modules.values()


def _ready(layer: nn.Module, x: Tensor) -> tuple[list[Tensor], list[array]] | None:
    """Return the numbers of norms and gates, and the four products of a layer; None where torch has to."""
    attention, mlp = layer.attention, layer.mlp
    is_seeing = hasattr(layer, "attention_gate")
    norms = [layer.attention_norm, layer.mlp_norm, *([attention.q_norm] if is_seeing else [])]
    numbers = [norm.weight for norm in norms] + ([layer.attention_gate, layer.mlp_gate] if is_seeing else [])
    if any(type(norm) is not RMSNorm for norm in norms) or not all(map(is_plain, numbers)):
        return None
    projections = [attention.q_proj] if is_seeing else [attention.q_proj, attention.k_proj, attention.v_proj]
    products = []
    for layers in (projections, [attention.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]):
        weights = weights_of(x.new_empty(layers[0].in_features), layers)
        products.append(None if weights is None else product_table(layers[0].in_features, weights))
    return None if None in products else (numbers, products)


def _kept_table(x: Tensor, kept: AllLayersKV) -> array | None:
    """Return what `layer.c` calls Kept; None where torch has to."""
    keys, values, scales, length = kept
    first = None if scales is None else (scales[0][0], scales[1][0])
    table = vectors(x, keys[0], values[0], first)
    if table is None or keys.stride(0) != values.stride(0):
        return None
    table.extend((keys.stride(0) * keys.itemsize, 0 if scales is None else scales[0].stride(0), length))
    return table
