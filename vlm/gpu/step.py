"""What all layers of a decoder make of one token on a GPU: five or six kernels a layer, each of which reads its weights
once, instead of some twenty. None everywhere says that torch has to do it, layer by layer."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from adapters.cross_attention import ImageKV
from vlm.gpu.functions import WIDTHS, Weights, attend_one, product, rotate_and_keep
from vlm.kv_cache import KVCache
from vlm.layer_pieces import layer_pieces
from vlm.native.functions import Linear, RMSNorm


class ReadyLayer(NamedTuple):
    """The weights of a layer as the kernels take them."""

    norm: tuple[Tensor, float]
    projections: list[Weights]
    """Of queries, keys and values; of a layer that looks at pictures of queries alone."""
    out: Weights
    mlp_norm: tuple[Tensor, float]
    gate_and_up: list[Weights]
    down: Weights
    query_norm: tuple[Tensor, float] | None
    """Of a layer that looks at pictures, as both of the next."""
    attention_gate: Tensor | None
    mlp_gate: Tensor | None


def ready_layers(layers: Iterable[nn.Module], text: KVCache, pictures: ImageKV | None) -> list[ReadyLayer] | None:
    """Return the layers of a decoder made ready; None where something is not what the kernels take."""
    width = text.keys.shape[-1]
    fits = width in WIDTHS and text.keys.stride() == text.values.stride()
    if pictures is not None:
        fits = fits and pictures.keys.stride() == pictures.values.stride() and pictures.keys.stride(-1) == 1
        fits = fits and pictures.keys.shape[-1] == width and pictures.keys.shape[3] > 0
    ready = [_ready(layer) for layer in layers] if fits else [None]
    return None if None in ready else ready


def run_layers(
    layers: list[ReadyLayer],
    x: Tensor,
    text: KVCache,
    mask: Tensor,
    position: Tensor,
    angles: tuple[Tensor, Tensor],
    pictures: ImageKV | None,
) -> Tensor:
    """Return what `layers` make of x [1, 1, d]; its keys and values are written to `position` [1] of `text`.

    mask [1, 1, 1, l] bool: which of the text's keys may be seen. angles: cosines and sines [e] of the position.
    pictures: None leaves the layers that look at pictures out.
    """
    shape, x = x.shape, x.flatten()
    num_self = num_cross = 0
    width = text.keys.shape[-1]
    for layer in layers:
        if layer.query_norm is None:
            kv = text.read(num_self, text.capacity)
            num_self += 1
            heads = product(x, layer.projections, norm=layer.norm).view(-1, width)
            attended = attend_one(rotate_and_keep(heads, angles, position, *kv), *kv, mask=mask)
        elif pictures is None:
            continue
        else:
            queries = product(x, layer.projections, norm=layer.norm).view(1, -1, 1, width)
            attended = attend_one(queries, *pictures.layer(num_cross), norm=layer.query_norm)
            num_cross += 1
        x = product(attended.flatten(), [layer.out], residual=x, gate=layer.attention_gate)
        hidden = product(x, layer.gate_and_up, norm=layer.mlp_norm, gated=True)
        x = product(hidden, [layer.down], residual=x, gate=layer.mlp_gate)
    return x.view(shape)


def _ready(layer: nn.Module) -> ReadyLayer | None:
    pieces = layer_pieces(layer)
    norms, products = [_norm(norm) for norm in pieces.norms], [_weights(layers) for layers in pieces.products]
    if None in norms or None in products:
        return None
    norm, mlp_norm, *query_norm = norms
    projections, (out,), gate_and_up, (down,) = products
    return ReadyLayer(
        norm, projections, out, mlp_norm, gate_and_up, down, *(query_norm or [None]), *(pieces.gates or [None, None])
    )


def _norm(part: nn.Module) -> tuple[Tensor, float] | None:
    return (part.weight, part.eps) if type(part) is RMSNorm and part.weight is not None else None


def _weights(layers: list[nn.Module]) -> list[Weights] | None:
    """Return the weights of layers that are multiplied in one call; None where they are of several kinds."""
    found = [_weights_of(layer) for layer in layers]
    return None if None in found or len({weights.kind for weights in found}) > 1 else found


def _weights_of(layer: nn.Module) -> Weights | None:
    if type(layer) is Linear and (weight := layer._parameters.get("weight")) is not None:
        return Weights(weight) if weight.is_contiguous() else None
    return layer.gpu_weights() if hasattr(layer, "gpu_weights") else None
