"""How the reader's decoder hands places on: from what a question names to what stands beside it.

Two heads of the first cross-attention layer find. What they found tells its own place, its partner's, and a shade; two
heads of the second look for what lies at that partner's place, has its own partner where the first was found, and is of
the shade that was found second. Of several values beside one label that is the one of the legend entry that was named.
Only what is found is learned, and what is copied from there.
"""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from adapters.cross_attention import CrossAttention, GatedCrossAttentionLayer
from vlm.model import VisionLanguageModel
from vlm.training.reader.hold import hold
from vlm.training.reader.targets import MAX_MAGNITUDE

PLACE_SHARPNESS = 6.0
"""What the norm of the queries that look for a place starts at: next to it lie places that are all but equal to it."""
REGISTERED = 0.5
"""How loud a place is put down in the decoder."""
HINT = 0.5
"""What it counts for that something lies where a label has its partner, beside that it has its partner at the label:
of several values the label knows but one."""
SHADE_LOUDNESS = 6.0
"""How loud an image token tells a shade: a match of shades counts about as much as one of places."""
NUM_SHADE_DIMS = 6
NUM_MAGNITUDE_DIMS = 3
SHADE_WAVES = ((0, 9), (0, 11), (1, 11))
"""The (axis, wave) of a place that give way to a shade: the longest, which tell least."""


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


def shade_dims(model: VisionLanguageModel) -> slice:
    """Return the dims of an image token that tell the shade of what is printed in its patch."""
    end = partner_dims(model).stop
    return slice(end, end + NUM_SHADE_DIMS)


def shade_code(shade: Tensor) -> Tensor:
    """Return red, green and blue [..., 3], each from 0 to 1, as [..., 6]: the more like one another, the closer."""
    angle = math.pi * shade
    return torch.cat([angle.cos(), angle.sin()], -1)


def magnitude_dims(model: VisionLanguageModel) -> slice:
    """Return the dims of an image token that tell how large among those of its chart the value of its patch is."""
    end = shade_dims(model).stop
    return slice(end, end + NUM_MAGNITUDE_DIMS)


def magnitude_code(magnitude: Tensor) -> Tensor:
    """Return magnitudes [...] as [..., 3]: from -1, the smallest, to 1, the largest, and whether it is either."""
    share = (magnitude.float() - 1) / (MAX_MAGNITUDE - 1)
    return torch.stack([2 * share - 1, (magnitude == 1).float(), (magnitude == MAX_MAGNITUDE).float()], -1)


def shared_rows(head_dim: int) -> tuple[list[int], list[int], list[int]]:
    """Return which dims of a head hold a place, which another place, and which a shade.

    Of a place, in `sinusoids`' order, one takes every other wave, and the other those between, less the shade's.
    """
    waves = torch.arange(head_dim).view(2, 2, -1)
    shade = [row for axis, wave in SHADE_WAVES for row in waves[axis, :, wave].tolist()]
    own, other = waves[:, :, 0::2].flatten().tolist(), waves[:, :, 1::2].flatten().tolist()
    return own, [row for row in other if row not in shade], shade


@torch.no_grad()
def wire_pointers(model: VisionLanguageModel) -> None:
    """Have one cross-attention layer hand places on to the next; done after each step, for weight decay undoes it.

    An image token holds its own place first, then its partner's, then its shade. Where the first layer looks at a
    label, two heads put its partner's place, its own and its shade where the second layer looks for what lies there,
    and puts that place in turn. With the first places goes the second shade.
    """
    find, copy, _ = cross_attentions(model)
    size = model.config.decoder.head_dim
    own, partner, shade = slice(size), partner_dims(model), shade_dims(model)
    one = torch.eye(size, device=model.projector.weight.device)
    here, there, shaded = (one[rows] for rows in shared_rows(size))
    of_shade = shaded.T @ shaded
    model.projector.weight[own] = 0
    model.projector.weight[own, model.config.vision.width - size : model.config.vision.width] = one
    model.projector.bias[own] = 0
    for projection, nearer, further, weight in ((find.v_proj, partner, own, 1), (copy.k_proj, own, partner, HINT)):
        projection.weight[own] = 0
        projection.weight[own, nearer] += weight * here.T @ here
        projection.weight[own, further] += there.T @ there
        projection.weight[own, shade] += shaded.T
    copy.v_proj.weight[own] = 0
    copy.v_proj.weight[own, own] = one
    for head in range(2):
        rows = slice(head * size, (head + 1) * size)
        register = _register(model, head)
        copy.q_proj.weight[rows] = 0
        copy.q_proj.weight[rows, register] = one - of_shade
        copy.q_proj.weight[rows, _register(model, 1)] += of_shade
        for layer in (find, copy):
            layer.o_proj.weight[:, rows] = 0
            layer.o_proj.weight[register, rows] = REGISTERED * one


@torch.no_grad()
def is_wired(model: VisionLanguageModel) -> bool:
    """Return whether the pointers of `model` are wired as `wire_pointers` would."""
    wired = deepcopy(model)
    wire_pointers(wired)
    return all(map(torch.equal, model.parameters(), wired.parameters()))


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
