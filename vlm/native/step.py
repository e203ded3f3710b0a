"""What all layers of a decoder make of one token, in one call: its products take less time than a thousand calls do.

The same functions one after the other, with the same roundings: bit for bit what the layers give one by one.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vision_encoder.native import PLAIN, is_plain
from vlm.layer_pieces import layer_pieces
from vlm.native.binding import library, product_table
from vlm.native.functions import RMSNorm, is_untouched, vectors, weights_of


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

    def __init__(self, state: list, layers: list[tuple[list[Tensor], list[array]]]):
        self.state, self._products = state, [products for _, products in layers]
        self._num_seeing = sum(len(numbers) > 2 for numbers, _ in layers)
        # Of the first product of layers that do not look at pictures, and of those that do.
        self._widths = {(len(numbers) > 2, products[0][1]) for numbers, products in layers}
        self._table = array("q")
        for numbers, products in layers:
            norm, mlp_norm, *seeing = (number.data_ptr() for number in numbers)
            places = [table.buffer_info()[0] for table in products]
            self._table.extend((norm, mlp_norm, *places, *(seeing or (0, 0, 0))))

    def __reduce__(self) -> tuple:
        # A copy of the model, or the model in another process, is somewhere else.
        return type(None), ()

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
        num_layers, shape = len(self._products), (1, text.keys.shape[2], text.keys.shape[4])
        if not self._widths <= {(False, (heads + 2 * shape[1]) * shape[2]), (True, heads * shape[2])}:
            return None
        tables = [_kept_table(x, text, num_layers - self._num_seeing, shape)]
        tables.append(None if pictures is None else _kept_table(x, pictures, self._num_seeing, shape))
        if tables[0] is None or (pictures is not None and tables[1] is None):
            return None
        out = x.clone(memory_format=torch.contiguous_format)
        if library().decode_step(
            out.data_ptr(), self._table.buffer_info()[0], num_layers,
            *(None if table is None else table.buffer_info()[0] for table in tables),
            heads, *shape[1:], *(each.data_ptr() for each in angles), eps, torch.get_num_threads(),
        ):  # fmt: skip
            raise MemoryError("no memory for a decode step")
        return out


def decode_step(layers: nn.ModuleList, x: Tensor, last: DecodeStep | None) -> DecodeStep | None:
    """Return `layers` made ready for x [1, 1, d]: `last`, where that still holds; None where torch has to."""
    if not is_plain(x) or library() is None or torch.is_grad_enabled() or (state := weights_state(layers)) is None:
        return None
    if last is not None and last.state == state:
        return last
    ready = []
    for layer in layers:
        if (found := _ready(layer, x)) is None:
            return None
        ready.append(found)
    return DecodeStep(state, ready)


def weights_state(layers: nn.ModuleList) -> list | None:
    """Return what tells whether weights are still what and where they were; None where hooks would be passed over, or
    processes share them."""
    if _has_any_global_hook():
        return None
    state = []
    for layer in layers:
        for part in _parts(layer):
            if not is_untouched(part):
                return None
            # Who arranged quantised weights is an object of its own, which lives as long as it stands here: what is
            # arranged anew differs, even where it lies in the same place.
            state += (type(part), vars(part).get("kernel"))
            for tensors in (part._parameters, part._buffers):
                for tensor in tensors.values():
                    if tensor is not None:
                        if type(tensor) not in PLAIN:
                            return None
                        state += (tensor.data_ptr(), tensor.dtype, tensor.shape)
    return state


def _parts(layer: nn.Module) -> Iterator[nn.Module]:
    """Yield a layer and all in it. Not `modules()`, which takes longer than all the rest of a step in Python."""
    yield layer
    for part in layer._modules.values():
        yield part
        yield from part._modules.values()


def _ready(layer: nn.Module, x: Tensor) -> tuple[list[Tensor], list[array]] | None:
    """Return the numbers of norms and gates, and the four products of a layer; None where torch has to."""
    pieces = layer_pieces(layer)
    numbers = [norm.weight for norm in pieces.norms] + pieces.gates
    if any(type(norm) is not RMSNorm for norm in pieces.norms) or not all(map(is_plain, numbers)):
        return None
    products = []
    for layers in pieces.products:
        weights = weights_of(x.new_empty(layers[0].in_features), layers)
        products.append(None if weights is None else product_table(layers[0].in_features, weights))
    return None if None in products else (numbers, products)


def _kept_table(x: Tensor, kept: AllLayersKV, num_layers: int, shape: tuple[int, int, int]) -> array | None:
    """Return what `layer.c` calls Kept, of keys and values of `shape` (1, g, e); None where torch has to, which also
    says what is wrong with others: C writes without looking."""
    keys, values, scales, length = kept
    fits = keys.shape == values.shape and keys.dtype == values.dtype and keys.stride() == values.stride()
    fits = fits and len(keys) >= num_layers and keys.shape[1:3] + keys.shape[4:] == shape and length <= keys.shape[3]
    if not fits:
        return None
    if scales is not None and scales[0].stride() != scales[1].stride():
        return None
    table = vectors(x, keys[0], values[0], None if scales is None else (scales[0][0], scales[1][0]))
    if table is None:
        return None
    table.extend((keys.stride(0) * keys.itemsize, 0 if scales is None else scales[0].stride(0), length))
    return table
