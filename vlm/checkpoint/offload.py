"""Which weights stay in the CPU's memory where a GPU has too little: chosen by size, before the first one is read."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.checkpoint.layer_stream import LayerStream
from vlm.checkpoint.memory import num_bytes
from vlm.config import ModelConfig
from vlm.decoder import SelfAttentionLayer
from vlm.errors import VLMError
from vlm.generation.generate import PREFILL_CHUNK
from vlm.model import VisionLanguageModel
from vlm.quantization import quantized_layers

logger = logging.getLogger(__name__)

# The room that is made where it can be: for the positions of a text, and for pictures that are kept for the next
# question. Six of the 11B's are what its image cache holds by itself.
_POSITIONS, _PICTURES = 8192, 6


class Offload(NamedTuple):
    """The layers that stay in the CPU's memory, in the order they are run."""

    encoder: Sequence[str] = ()
    decoder: Sequence[str] = ()

    def holds(self, name: str) -> bool:
        """Return whether the weight of that name stays there."""
        return any(name.startswith(f"{layer}.") for layer in (*self.encoder, *self.decoder))


class LayerSizes(NamedTuple):
    """What the weights of a model take, in bytes."""

    encoder: list[int]
    """Each layer of the encoder, in the order they are run."""
    decoder: list[int]
    """Each layer of the decoder that can be streamed."""
    others: int
    """All else."""


class Counts(NamedTuple):
    """How many layers of each kind stay in the CPU's memory: the last ones."""

    encoder: int
    decoder: int


def choose(model: VisionLanguageModel, dtype: torch.dtype, free: int, low_memory: bool | None) -> Offload:
    """Return which layers of a model without values stay in the CPU's memory.

    free: bytes of the GPU's memory.
    low_memory: True takes the whole encoder, and more where it has to be; None no more than has to be; False nothing.

    Raises VLMError where the model does not fit so.
    """
    shapes, layers = model.state_dict(), _streamable(model)
    sizes = [[num_bytes(_under(shapes, layer), dtype) for layer in kind] for kind in layers]
    others = num_bytes(shapes, dtype) - sum(map(sum, sizes))
    counts = plan(LayerSizes(*sizes, others), free, reserve_bytes(model.config, dtype), low_memory)
    return Offload(*(kind[len(kind) - count :] for kind, count in zip(layers, counts, strict=True)))


def plan(sizes: LayerSizes, free: int, reserve: int, low_memory: bool | None) -> Counts:
    """Return how many layers have to stay in the CPU's memory: the encoder's first, for only pictures want them.

    As few as leave `reserve` of `free` bytes; where no choice does, those that leave most.

    Raises VLMError where the weights do not fit whatever stays there.
    """

    def needs(counts: Counts) -> int:
        return device_bytes(sizes, counts)

    choices = [Counts(count, 0) for count in range(len(sizes.encoder) + 1)]
    if low_memory is not None:
        choices = choices[-1:] if low_memory else choices[:1]
    if low_memory is not False:
        # Of very few layers the buffers take more than is saved.
        most = min(choices, key=needs)
        choices += [most._replace(decoder=1 + count) for count in range(len(sizes.decoder))]
    found = next((counts for counts in choices if needs(counts) + reserve <= free), min(choices, key=needs))
    if needs(found) > free:
        hint = "; leave low_memory out, so that layers may stay in the CPU's memory" if low_memory is False else ""
        raise VLMError(
            "device_unavailable",
            f"the weights need {needs(found) / 1e9:.1f} GB of the GPU's memory and {free / 1e9:.1f} GB are free; give "
            f'quantize="int8" or "int4", a larger GPU or a smaller model{hint}',
        )
    return found


def device_bytes(sizes: LayerSizes, counts: Counts) -> int:
    """Return what the weights take on the device: the layers that stay there, and two buffers a kind for the others."""
    total = sizes.others
    for kind, count in zip((sizes.encoder, sizes.decoder), counts, strict=True):
        start = len(kind) - count
        total += sum(kind[:start]) + 2 * max(kind[start:], default=0)
    return total


def reserve_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return what to leave for a text's keys and values, a few pictures, and what a layer makes of either meanwhile."""
    decoder, vision = config.decoder, config.vision
    key_and_value = 2 * decoder.num_kv_heads * decoder.head_dim
    count = decoder.num_layers * min(_POSITIONS, decoder.max_context) * key_and_value
    count += PREFILL_CHUNK * (4 * decoder.width + 3 * decoder.mlp_dim)
    if vision is not None:
        rows = vision.max_tiles * (vision.tokens_per_tile + vision.num_padding_tokens)
        kept = vision.feature_dim + decoder.width + len(config.adapter.cross_layers) * key_and_value
        count += rows * (_PICTURES * kept + 6 * vision.width + 2 * vision.mlp_dim)
    return count * dtype.itemsize


def stream(model: VisionLanguageModel, offload: Offload, device: torch.device) -> None:
    """Stream the layers of `offload` to `device` from now on, and say once what that means."""
    encoder, decoder = ([model.get_submodule(name) for name in kind] for kind in offload)
    if encoder:
        LayerStream(encoder, device, repeats=False)
    if decoder:
        LayerStream(decoder, device, repeats=True)
    logger.info(
        "%.1f GB of the encoder and %.1f GB of the decoder stay in the CPU's memory: every picture takes longer by "
        "the time it takes to copy the first to the GPU, every token by that of the others",
        *(sum(weight.nbytes for layer in kind for weight in layer.parameters()) / 1e9 for kind in (encoder, decoder)),
    )


def _streamable(model: VisionLanguageModel) -> Offload:
    """Return all layers that can be streamed.

    Not those that look at pictures: texts pass them by, and keys and values of pictures are made outside of their
    forward. Not quantised ones, whose kernels hold on to where the weights are.
    """
    encoder = []
    if model.encoder is not None:
        for kind in ("local_layers", "global_layers"):
            encoder += [f"encoder.{kind}.{place}" for place in range(len(getattr(model.encoder, kind)))]
    decoder = [
        f"decoder.layers.{place}"
        for place, layer in enumerate(model.decoder.layers)
        if isinstance(layer, SelfAttentionLayer) and not quantized_layers(layer)
    ]
    return Offload(encoder, decoder)


def _under(shapes: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name: shape for name, shape in shapes.items() if name.startswith(f"{layer}.")}
