"""A decoder layer of either kind taken apart, for those who compute it as a whole instead of calling it."""

from typing import NamedTuple

from torch import nn


class LayerPieces(NamedTuple):
    """What a token goes through in one layer, in order."""

    norms: list[nn.Module]
    """Before attention, before the feed-forward; of a layer that looks at pictures, of its queries besides."""
    products: list[list[nn.Module]]
    """Four times the linear layers that have the same input: queries, and of a layer that does not look at pictures
    keys and values; out; gate and up; down."""
    gates: list[nn.Parameter]
    """Of attention and of the feed-forward; empty unless the layer looks at pictures."""


def layer_pieces(layer: nn.Module) -> LayerPieces:
    """Return the pieces of a `SelfAttentionLayer` or a `GatedCrossAttentionLayer`."""
    attention, mlp = layer.attention, layer.mlp
    norms, projections, gates = [layer.attention_norm, layer.mlp_norm], [attention.q_proj], []
    if hasattr(layer, "attention_gate"):
        norms.append(attention.q_norm)
        gates = [layer.attention_gate, layer.mlp_gate]
    else:
        projections += [attention.k_proj, attention.v_proj]
    return LayerPieces(norms, [projections, [attention.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]], gates)
