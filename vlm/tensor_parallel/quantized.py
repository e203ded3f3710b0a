"""Quantised layers shared by several processes as torch's styles share plain ones, which are all that those know.

Cut by its outputs a layer keeps some rows of numbers and scales; cut by its inputs, some columns. A group of columns
that falls to two processes becomes smaller ones of the same scale, so that no weight changes.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle

from vlm.quantization import QuantizedLinear


def share_quantized(layer: QuantizedLinear, mesh: DeviceMesh, style: ParallelStyle) -> None:
    """Keep this process's part of `layer`, in place; it takes and gives what a plain layer of this style does."""
    by_outputs, whole = isinstance(style, ColwiseParallel), layer.out_features
    taken, made = (Replicate(), Shard(-1)) if by_outputs else (Shard(-1), Partial())
    cut = cut_rows if by_outputs else cut_columns
    cut(layer, mesh.size(), mesh.get_local_rank())
    # Where gradients pass it, that is not the class's.
    product = layer.forward

    def take(_: nn.Module, inputs: tuple[Tensor]) -> tuple[DTensor]:
        return (DTensor.from_local(inputs[0], mesh, [taken], run_check=False),)

    def forward(x: DTensor) -> DTensor:
        # What all have is moved by each: its gradient is their sum.
        out = product(x.to_local(grad_placements=[Partial()] if by_outputs else x.placements))
        shape = torch.Size((*out.shape[:-1], whole))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(out, mesh, [made], run_check=False, shape=shape, stride=stride)

    def give(_: nn.Module, inputs: tuple[DTensor], out: DTensor) -> Tensor:
        return out.redistribute(placements=style.output_layouts).to_local()

    layer.forward = forward
    layer.register_forward_pre_hook(take)
    # Behind that of its adapters, which are shared too.
    layer.register_forward_hook(give)


def uneven(layers: Iterable[tuple[str, QuantizedLinear]], count: int) -> list[str]:
    """Return those of `layers`, all cut by their inputs, whose bytes would have to be cut."""
    bad = [(name, layer) for name, layer in layers if layer.scheme.bits == 4 and layer.in_features % (2 * count)]
    return [f"{name} {layer.in_features} columns of 4 bits" for name, layer in bad]


def cut_rows(layer: QuantizedLinear, count: int, place: int) -> None:
    """Leave the `layer` of process `place` of `count` its outputs, in place."""
    codes, scales, zeros = (None if part is None else part.chunk(count)[place] for part in _stored(layer))
    layer.out_features = len(codes)
    _put(layer, [codes, scales, zeros])


def cut_columns(layer: QuantizedLinear, count: int, place: int) -> None:
    """Leave the `layer` of process `place` of `count` its inputs, in place."""
    codes, scales, zeros = _stored(layer)
    layer.in_features //= count
    if (size := layer.scheme.group_size) is not None:
        layer.scheme = replace(layer.scheme, group_size=math.gcd(size, layer.in_features))
        times = size // layer.scheme.group_size
        scales, zeros = (
            None if part is None else part.repeat_interleave(times, 1).chunk(count, 1)[place]
            for part in (scales, zeros)
        )
    _put(layer, [codes.chunk(count, 1)[place], scales, zeros])


def _stored(layer: QuantizedLinear) -> list[Tensor | None]:
    """Return the weights of `layer`, which is left without a kernel, for it would be another's."""
    weight, layer.kernel = layer.stored(), None
    return list(weight)


def _put(layer: QuantizedLinear, parts: Iterable[Tensor | None]) -> None:
    # Copies, lest a view hold the whole.
    layer.codes, layer.scales, layer.zeros = (None if part is None else part.clone() for part in parts)
    layer.arrange()
