"""How the reader's decoder hands places on: from what a question names to what stands beside it.

Two heads of the first cross-attention layer find; what they found tells where its partner is; two heads of the second
look there. Only what is found is learned, and what is copied from there.
"""

import torch
from torch import nn

from adapters.cross_attention import CrossAttention, GatedCrossAttentionLayer
from vlm.model import VisionLanguageModel
from vlm.training.reader.hold import hold

PLACE_SHARPNESS = 6.0
"""What the norm of the queries that look for a place starts at: next to it lie places that are all but equal to it."""
REGISTERED = 0.5
"""How loud a place is put down in the decoder."""


@torch.no_grad()
def lay_wires(model: VisionLanguageModel) -> None:
    """Wire the pointers for good, and have the third layer begin by looking where the second did."""
    wire_pointers(model)
    _hold_wires(model)
    _, copy, spell = cross_attentions(model)
    nn.init.constant_(copy.q_norm.weight, PLACE_SHARPNESS)
    size = model.config.decoder.head_dim
    spell.q_proj.weight[:size, _register(model, 0)] += torch.eye(size)
    spell.k_proj.weight[:size, :size] += torch.eye(size)


def partner_dims(model: VisionLanguageModel) -> slice:
    """Return the dims of an image token that tell where the partner of its patch is."""
    head_dim = model.config.decoder.head_dim
    return slice(head_dim, 2 * head_dim)


@torch.no_grad()
def wire_pointers(model: VisionLanguageModel) -> None:
    """Have one cross-attention layer hand places on to the next; done after each step, for weight decay undoes it.

    An image token holds its own place first, then its partner's. Where the first layer looks at a label, two heads take
    its partner's place and put it where the second layer looks for what lies there, and puts that place in turn.
    """
    find, copy, _ = cross_attentions(model)
    size = model.config.decoder.head_dim
    own, partner = slice(size), partner_dims(model)
    one = torch.eye(size)
    model.projector.weight[own] = 0
    model.projector.weight[own, model.config.vision.width - size : model.config.vision.width] = one
    model.projector.bias[own] = 0
    for projection, dims in ((find.v_proj, partner), (copy.k_proj, own), (copy.v_proj, own)):
        projection.weight[own] = 0
        projection.weight[own, dims] = one
    for head in range(2):
        rows = slice(head * size, (head + 1) * size)
        register = _register(model, head)
        copy.q_proj.weight[rows] = 0
        copy.q_proj.weight[rows, register] = one
        for layer in (find, copy):
            layer.o_proj.weight[:, rows] = 0
            layer.o_proj.weight[register, rows] = REGISTERED * one


def _hold_wires(model: VisionLanguageModel) -> None:
    """Let no gradient change what `wire_pointers` sets."""
    find, copy, _ = cross_attentions(model)
    size = model.config.decoder.head_dim
    for parameter in (model.projector.weight, model.projector.bias, find.v_proj.weight):
        hold(parameter, slice(size))
    for parameter, num_heads in ((copy.k_proj.weight, 1), (copy.v_proj.weight, 1), (copy.q_proj.weight, 2)):
        hold(parameter, slice(num_heads * size))
    for layer in (find, copy):
        hold(layer.o_proj.weight, (slice(None), slice(2 * size)))


def cross_attentions(model: VisionLanguageModel) -> list[CrossAttention]:
    """Return what looks at the picture, from the first layer to the last: FIND, COPY and SPELL."""
    return [layer.attention for layer in model.decoder.layers if isinstance(layer, GatedCrossAttentionLayer)]


def _register(model: VisionLanguageModel, head: int) -> slice:
    """Return the dims of the decoder in which a head puts a place: the last ones."""
    size, width = model.config.decoder.head_dim, model.config.decoder.width
    return slice(width - (2 - head) * size, width - (1 - head) * size)
