"""Each layer shared by several processes: which of its matrices are cut, and along which side.

Attention is cut by heads, feed-forwards by their hidden width, the vocabulary by rows; each pair of a map cut by
columns and one cut by rows costs one all-reduce. Norms, gates, position tables and the patch embedding are small:
every process has all of them and computes the same with them. An adapter is cut as its layer is: its `up` by rows where
the layer's outputs are, its `down` by columns where its inputs are, and its other half every process has. Quantised
layers are cut like plain ones; see `quantized.py`.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from adapters.cross_attention import GatedCrossAttentionLayer
from adapters.lora import Adapters
from vlm.config import ModelConfig
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel
from vlm.processes import join
from vlm.quantization import quantized_layers
from vlm.tensor_parallel.quantized import share_quantized, uneven

ATTENTION = {
    "attention.q_proj": ColwiseParallel,
    "attention.k_proj": ColwiseParallel,
    "attention.v_proj": ColwiseParallel,
    "attention.o_proj": RowwiseParallel,
}
FEED_FORWARD = {"mlp.gate_proj": ColwiseParallel, "mlp.up_proj": ColwiseParallel, "mlp.down_proj": RowwiseParallel}
VISION_FEED_FORWARD = {"fc1": ColwiseParallel, "fc2": RowwiseParallel}


def plan(model: VisionLanguageModel) -> dict[str, ParallelStyle]:
    """Return how each part is shared, by name."""
    styles: dict[str, ParallelStyle] = {
        "decoder.embedding": RowwiseParallel(input_layouts=Replicate()),
        "decoder.head": ColwiseParallel(output_layouts=Replicate()),
    }
    for place, layer in enumerate(model.decoder.layers):
        name = f"decoder.layers.{place}"
        styles |= {f"{name}.{part}": style() for part, style in (ATTENTION | FEED_FORWARD).items()}
        if isinstance(layer, GatedCrossAttentionLayer):
            # One weight for all heads, of which each process has some: its gradient is the sum over them.
            styles |= {
                f"{name}.attention.{part}_norm": SequenceParallel(sequence_dim=1, use_local_output=True)
                for part in "qk"
            }
    if model.encoder is not None:
        styles["projector"] = ColwiseParallel(output_layouts=Replicate())
        for stack in ("local_layers", "global_layers"):
            for place in range(len(getattr(model.encoder, stack))):
                parts = ATTENTION | VISION_FEED_FORWARD
                styles |= {f"encoder.{stack}.{place}.{part}": style() for part, style in parts.items()}
    return styles


def share_layers(model: VisionLanguageModel, mesh: DeviceMesh) -> None:
    """Keep this process's part of every layer of `model`, in place.

    Raises: VLMError where heads or widths do not divide by the number of processes.
    """
    _check(model, mesh.size())
    decoder = model.decoder
    tied = decoder.head is None
    if tied:
        # A tied head looks up the same rows as the embedding: as a layer of its own it can be cut like one.
        decoder.head = nn.Linear(*reversed(decoder.embedding.weight.shape), bias=False, device="meta")
        decoder.head.weight = decoder.embedding.weight
    styles, quantized = plan(model), quantized_layers(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    # torch's styles take a layer's parameters for its own, whatever they are of.
    children = {name: model.get_submodule(name)._modules for name in styles}
    adapters = {name: own.pop("lora") for name, own in children.items() if "lora" in own}
    parallelize_module(model, mesh, {name: style for name, style in styles.items() if name not in quantized})
    for name, layer in quantized.items():
        share_quantized(layer, mesh, styles[name])
    for name, stack in adapters.items():
        share_adapters(stack, mesh, by_outputs=isinstance(styles[name], ColwiseParallel))
        model.get_submodule(name).lora = stack
    for name in styles:
        # What is attached from here on would be whole.
        model.get_submodule(name).is_shared = True
    if tied:
        decoder.head.weight = decoder.embedding.weight
    for name, weight in model.named_parameters():
        # Its style for norms has them all trained.
        weight.requires_grad_(name in trained)
    for layer in [] if model.encoder is None else [*model.encoder.local_layers, *model.encoder.global_layers]:
        layer.attention.num_heads //= mesh.size()
    # Caches and image keys and values hold the heads that are here.
    num_here = model.config.decoder.num_kv_heads // mesh.size()
    model.config = replace(model.config, decoder=replace(model.config.decoder, num_kv_heads=num_here))


def share_adapters(stack: Adapters, mesh: DeviceMesh, *, by_outputs: bool) -> None:
    """Keep this process's part of the adapters of a layer that is cut by its outputs, or by its inputs, in place."""
    places = {"up": Shard(0), "down": Replicate()} if by_outputs else {"up": Replicate(), "down": Shard(1)}
    for adapter in stack.values():
        for name, place in places.items():
            whole = getattr(adapter, name)
            share = nn.Parameter(distribute_tensor(whole, mesh, [place]), requires_grad=whole.requires_grad)
            setattr(adapter, name, share)
        adapter.dropout = dropout_of_shares


def dropout_of_shares(x: DTensor, share: float, training: bool) -> DTensor:
    """Return x as dropout leaves it in one process that has all of it.

    Each process draws for the whole of x and keeps what falls to its part. On a CPU torch's own draws the same for each
    part, so that features would be dropped in pairs.
    """
    if not training or share == 0:
        return x
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device).bernoulli_(1 - share).div_(1 - share)
    # No process sends its own: all have drawn the same.
    return x * distribute_tensor(kept, x.device_mesh, x.placements, src_data_rank=None)


def share_for_inference(model: VisionLanguageModel, device: torch.device) -> VisionLanguageModel:
    """Return `model` shared by all processes that torchrun started, each of which has to ask it the same."""
    device = join(device)
    share_layers(model, init_device_mesh(device.type, (dist.get_world_size(),)))
    return model.to(device)


def _check(model: VisionLanguageModel, count: int) -> None:
    bad = [f"{name} {size}" for name, size in _sizes(model.config).items() if size % count]
    layers = quantized_layers(model).items()
    bad += uneven(((name, layer) for name, layer in layers if name.endswith(("o_proj", "down_proj"))), count)
    if bad:
        raise VLMError(
            "invalid_request",
            f"{', '.join(bad)!s:.150} cannot be shared evenly by {count} processes; expected multiples; "
            "start fewer, or share the data instead",
        )


def _sizes(config: ModelConfig) -> dict[str, int]:
    sizes = {"decoder.num_kv_heads": config.decoder.num_kv_heads, "decoder.mlp_dim": config.decoder.mlp_dim}
    if config.vision is not None:
        sizes |= {"vision.num_heads": config.vision.num_heads, "vision.mlp_dim": config.vision.mlp_dim}
    return sizes
