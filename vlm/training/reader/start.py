"""How the reader starts: gates open, positions and colours kept apart, and heads that look at neighbours.

A transformer left to itself spends most of a short training on finding out what lies beside what. Most print lies
across the borders of patches, so two heads of each local layer look at a neighbour from the first batch to the last:
only what they take from it is trained. Of the global heads only where they begin is set here.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from adapters.cross_attention import GatedCrossAttentionLayer
from vision_encoder.encoder import VisionEncoder
from vision_encoder.transformer import VisionAttention, VisionLayer
from vlm.model import VisionLanguageModel
from vlm.training.reader.hold import hold
from vlm.training.reader.sinusoids import num_position_dims, retile, shift
from vlm.training.reader.wires import lay_wires

SHARPNESS = 2.0
"""What the norm of the decoder's queries starts at: with 1 no attention over hundreds of patches can be sharp."""
_ABOVE, _BELOW, _LEFT, _RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)
NEIGHBOURS = ((_ABOVE, _BELOW), (_LEFT, _RIGHT), (_LEFT, _RIGHT), (_ABOVE, _BELOW))
"""(rows, cols) from a patch to what the first two heads of each local layer look at."""
LOUDNESS = 4.0
"""Of the patch embedding, beside torch's own start: as loud as the positions."""
PROMINENCE = 12.0
"""Of the positions in what the layers hand on, beside what a patch holds: the layers add to the latter. So loud, they
are all but the whole of what a norm divides by, and come out of it equally loud from full patches and empty ones."""
NUM_COLOURS = 3
COLOUR_LOUDNESS = 2.0
"""Of the mean red, green and blue of a patch, as normalised: about as loud as its strokes."""
COLOUR_PROMINENCE = 4.0
"""Of colours in what the layers hand on; what they add to the other dims grows about so large."""
FAINTNESS = 0.5
"""What the norms of local layers make of a position, so that queries and keys also hear what a patch holds."""
LOOK = 1.5
"""Weight of a position in queries and keys of the global layer, whose heads learn to look elsewhere."""
SHARP_LOOK = 4.0
"""The same where a head is to look at one neighbour and at nothing beside it."""


@torch.no_grad()
def initialise(model: VisionLanguageModel) -> None:
    """Set where training starts; the weights not named here keep torch's own start."""
    nn.init.normal_(model.decoder.embedding.weight, std=0.05)
    encoder = model.encoder
    retile(model, model.config.vision)
    _calm(encoder.patch_embedding.weight)
    _keep_apart(encoder)
    wire_encoder(encoder)
    for layer in encoder.local_layers:
        _hold_looks(layer, encoder.config.width)
    along_rows, along_cols = _axes(encoder.config.width)
    for layer in encoder.global_layers:
        _look(layer.attention, 0, along_rows, LOOK)
        _look(layer.attention, 1, along_cols, LOOK)
    for layer in model.decoder.layers:
        if isinstance(layer, GatedCrossAttentionLayer):
            nn.init.ones_(layer.attention_gate)
            nn.init.ones_(layer.mlp_gate)
            nn.init.constant_(layer.attention.q_norm.weight, SHARPNESS)
    lay_wires(model)


@torch.no_grad()
def wire_encoder(encoder: VisionEncoder) -> None:
    """Have two heads of each local layer look at a neighbour, and some dims hold the mean colour of each patch.

    Done after each step, for weight decay undoes it.
    """
    for layer, neighbours in zip(encoder.local_layers, NEIGHBOURS, strict=True):
        for head, steps in enumerate(neighbours):
            _look(layer.attention, head, shift(*steps, encoder.config.width), SHARP_LOOK)
    embedding, shared = encoder.patch_embedding.weight, num_shared_dims(encoder)
    num_pixels = embedding.shape[1] // NUM_COLOURS
    mean = torch.eye(NUM_COLOURS, device=embedding.device).repeat_interleave(num_pixels, dim=1) / num_pixels
    embedding[shared : shared + NUM_COLOURS] = COLOUR_LOUDNESS * mean


def _hold_looks(layer: VisionLayer, width: int) -> None:
    """Let no gradient turn the queries and keys of the heads that look at neighbours, nor the positions in them."""
    held = 2 * width // layer.attention.num_heads
    for projection in (layer.attention.q_proj, layer.attention.k_proj):
        hold(projection.weight, slice(held))
    kept = width - num_position_dims(width)
    layer.attention_norm.weight[kept:] = FAINTNESS
    for parameter in layer.attention_norm.parameters():
        hold(parameter, slice(kept, None))


def kept_apart(encoder: VisionEncoder) -> bool:
    """Return whether no layer writes where the positions and the colours are."""
    return not any(weight[num_shared_dims(encoder) :].any() for weight in _writers(encoder))


def num_shared_dims(encoder: VisionEncoder) -> int:
    """Return how many dims, the first ones, layers write to; colours come next, then positions."""
    width = encoder.config.width
    return width - num_position_dims(width) - NUM_COLOURS


@torch.no_grad()
def _keep_apart(encoder: VisionEncoder) -> None:
    """Let no layer write where the positions are, nor where the mean colour of each patch is.

    Where colours share their dims with what the layers add, they drown as positions do, and no value can tell the
    colour of its bar.
    """
    shared, width = num_shared_dims(encoder), encoder.config.width
    colours, positions = slice(shared, shared + NUM_COLOURS), slice(shared + NUM_COLOURS, width)
    encoder.norm_before.weight[positions] = PROMINENCE
    encoder.norm_before.weight[colours] = COLOUR_PROMINENCE
    for layer in encoder.local_layers:
        for norm in (layer.attention_norm, layer.mlp_norm):
            norm.weight[: positions.start] = PROMINENCE / 4
    for weight in _writers(encoder):
        weight[shared:] = 0
        hold(weight, slice(shared, None))
    encoder.patch_embedding.weight[positions] = 0
    hold(encoder.patch_embedding.weight, slice(shared, None))


def _writers(encoder: VisionEncoder) -> list[nn.Parameter]:
    """Return the weights of layers whose rows are added to what they hand on."""
    writers = []
    for layer in (*encoder.local_layers, *encoder.global_layers):
        writers += [layer.attention.o_proj.weight, layer.fc2.weight, layer.fc2.bias]
    return writers


def _look(attention: VisionAttention, head: int, sought: Tensor, weight: float) -> None:
    """Have a head look from each patch to those whose position, times `sought`, is most like its own."""
    width = attention.q_proj.weight.shape[1]
    head_dim, num_dims = width // attention.num_heads, len(sought)
    if head_dim < num_dims:
        raise ValueError(f"heads are {head_dim} wide; a look at positions needs {num_dims}")
    rows = slice(head * head_dim, head * head_dim + num_dims)
    seen = sought.abs().sum(0) > 0
    for projection, matrix in ((attention.q_proj, torch.diag(seen.float())), (attention.k_proj, sought)):
        part = projection.weight[rows]
        part[seen] = 0
        part[:, width - num_dims :] = weight * matrix


def _axes(width: int) -> tuple[Tensor, Tensor]:
    """Return what keeps of a position its row alone, and its column alone."""
    half = num_position_dims(width) // 2
    ones, zeros = torch.ones(half), torch.zeros(half)
    return torch.diag(torch.cat([ones, zeros])), torch.diag(torch.cat([zeros, ones]))


@torch.no_grad()
def _calm(weight: nn.Parameter) -> None:
    """Train the patch embedding on the strokes of a patch alone; its mean colour keeps a random embedding.

    Paper is white, which is far from zero once normalised: in every step the sum of all weights of a row would go the
    same way and shake what every patch means.
    """

    def mean(x: Tensor) -> Tensor:
        """Return the mean weight of each colour, at the shape of the weight [v, 3 * patch²]."""
        colours = rearrange(x, "v (c i) -> v c i", c=3)
        return rearrange(colours.mean(-1, keepdim=True).expand_as(colours), "v c i -> v (c i)")

    num_pixels = weight.shape[1] // 3
    weight *= LOUDNESS
    weight += mean(torch.randn_like(weight)) * LOUDNESS / 2 / math.sqrt(num_pixels) - mean(weight)
    weight.register_hook(lambda gradient: gradient - mean(gradient))
