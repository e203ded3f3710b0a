"""Memory of one QLoRA step on the shape of the 11B model.

    python -m benchmarks.qlora_memory [preset]

Computed on the meta device, not measured: the step is taken with tensors that have sizes and no values, and the bytes
that are alive are added up, so that it runs anywhere, in about a minute. Left out are what an allocator rounds up and
what a library keeps for itself. Each row is begun when it is computed; the last line is JSON.
"""

import argparse
import json
import weakref
from collections.abc import Iterable
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from adapters.lora import LoRAConfig
from vision_encoder.preprocess import ProcessedImage
from vlm.checkpoint import empty_model
from vlm.config import PRESETS, ModelConfig, preset
from vlm.model import VisionLanguageModel
from vlm.quantization import plan
from vlm.quantization.linear import put_quantized_layers
from vlm.training.frozen import let_gradients_through
from vlm.training.loop import recompute_layers
from vlm.training.rows import IGNORED, Row, reply_log_probabilities
from vlm.training.trained import train_adapter, trained_weights

NUM_TOKENS, NUM_LEARNED, RANK = 1024, 256, 16
GIB = 2**30


class StepBytes(NamedTuple):
    """What one step holds."""

    frozen: int
    """Weights that stay: matrices of the decoder in few bits, the rest in bfloat16."""
    adapter: int
    """Its weights and both moments of AdamW, in float32."""
    passing: int
    """The most that activations and gradients take at once."""

    @property
    def total(self) -> int:
        return sum(self)


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of all that is computed, until it is let go."""

    def __init__(self, held: Iterable[Tensor]):
        """`held`: what is there already and is not counted, nor views of it."""
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in held)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage.nbytes())
        return tensor

    def _forget(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _fused(q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool = False, **options) -> Tensor:
    """Attention that holds no scores, as on CPUs and GPUs; torch's own on the meta device would hold them all."""
    # Of this kernel alone the sizes are known there, on both ways, with fewer heads of keys too.
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, **options)[0]


def count_step(model: VisionLanguageModel, *, num_tokens: int, num_learned: int, recompute: bool) -> StepBytes:
    """Return the bytes of one step of `model`, which has adapters, on a text with one image of all its tiles."""
    adapter = sum(weight.nbytes for weight in trained_weights(model).values())
    held = [*model.parameters(), *model.buffers()]
    if recompute:
        recompute_layers(model)
    config = model.config
    ids = [config.decoder.vocab_size] + [0] * (num_tokens - 1)
    targets = [IGNORED] * (num_tokens - num_learned) + [0] * num_learned
    vision = config.vision
    pixels = torch.zeros(vision.max_tiles, 3, vision.tile_size, vision.tile_size)
    row = Row(ids=ids, targets=targets, images=[ProcessedImage(pixels, (1, vision.max_tiles))])
    attention = _fused if model.decoder.embedding.weight.is_meta else functional.scaled_dot_product_attention
    with patch.object(functional, "scaled_dot_product_attention", attention), LiveBytes(held) as live:
        (-reply_log_probabilities(model.train(), [row], config.decoder.vocab_size).sum()).backward()
    return StepBytes(sum(tensor.nbytes for tensor in held) - adapter, 3 * adapter, live.peak)


def adapted(config: ModelConfig, precision: str | None, rank: int) -> VisionLanguageModel:
    """Return a model without values, its decoder quantised, with adapters on all layers of the decoder."""
    model = empty_model(config)
    if precision is not None:
        put_quantized_layers(model, plan(model, precision))
    model.to(torch.bfloat16)
    let_gradients_through(model)
    train_adapter(model, LoRAConfig(rank=rank, targets=("decoder.layers.*_proj",)))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "preset", nargs="?", default="11b-vision", choices=[name for name in PRESETS if preset(name).vision]
    )
    name = parser.parse_args().preset
    config = preset(name)
    print(f"{name}: one step on {NUM_TOKENS:,} tokens, {NUM_LEARNED} of them learned, and an image of", end=" ")
    print(f"{config.vision.max_tiles} tiles; rank {RANK} on all layers of the decoder; computed on the meta device\n")
    print("| frozen weights | recompute | frozen | adapter, AdamW | activations, gradients | together |")
    print("|---|---|---|---|---|---|", flush=True)
    rows = []
    for precision in (None, "int8", "int4"):
        for recompute in (False, True):
            print(f"| {precision or 'bfloat16'} | {'yes' if recompute else 'no'} | ", end="", flush=True)
            model = adapted(config, precision, RANK)
            found = count_step(model, num_tokens=NUM_TOKENS, num_learned=NUM_LEARNED, recompute=recompute)
            print(" | ".join(f"{num_bytes / GIB:.2f} GiB" for num_bytes in (*found, found.total)), "|", flush=True)
            row = {"frozen_weights": precision or "bfloat16", "recompute": recompute}
            rows.append(row | {f"{part}_bytes": num_bytes for part, num_bytes in found._asdict().items()})
    step = {"tokens": NUM_TOKENS, "learned": NUM_LEARNED, "tiles": config.vision.max_tiles, "rank": RANK}
    print(json.dumps({"preset": name, "by": "computed on the meta device"} | step | {"rows": rows}))


if __name__ == "__main__":
    main()
