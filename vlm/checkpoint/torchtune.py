"""Low-rank adapters as torchtune saves them: `adapter_model.pt`, and of older versions `adapter_0.pt`.

Source: torchtune models/llama3_2_vision/_convert_weights.py and models/convert_weights.py (names, and the order of the
rows of rotary queries and keys, which is Meta's); training/checkpointing/_checkpointer.py (files).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from torch import Tensor

from vlm.checkpoint import meta
from vlm.checkpoint.files import invalid
from vlm.checkpoint.stored import ComputedTensor, StoredTensor
from vlm.checkpoint.torch_file import open_torch
from vlm.config import ModelConfig

_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[ab])\.weight")
# theirs, ours; {place} is that of a layer, among all of ours.
_MODULES = (
    (r"(?:decoder\.)?layers\.(\d{1,4})\.fusion_layer\.(.+)", "decoder.layers.{cross}."),
    (r"(?:decoder\.)?layers\.(\d{1,4})\.(.+)", "decoder.layers.{self}."),
    (r"encoder\.clip\.layers\.(\d{1,4})\.(.+)", "encoder.local_layers.{same}."),
    (r"encoder\.projection\.layers\.(\d{1,4})\.(.+)", "encoder.global_layers.{same}."),
)
_WHOLE = {
    "encoder.projection.output": "projector",
    "encoder.clip.conv": "encoder.patch_embedding",
    "decoder.output": "decoder.head",
    "output": "decoder.head",
}
_PARTS = {f"attn.{name}_proj": f"attention.{name}_proj" for name in "qkv"} | {"attn.output_proj": "attention.o_proj"}
_TEXT_PARTS = _PARTS | {"mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.down_proj", "mlp.w3": "mlp.up_proj"}
_VISION_PARTS = _PARTS | {"mlp.w1": "fc1", "mlp.w2": "fc2"}


def is_adapter(folder: Path) -> bool:
    """Tell whether torchtune's file is all that holds the weights in `folder`."""
    return not (folder / "adapter_model.safetensors").exists() and _file(folder) is not None


def read_halves(
    folder: Path, config: ModelConfig, opened: ExitStack, names: Mapping[str, str]
) -> dict[str, dict[str, StoredTensor]]:
    """Return both matrices of each adapted layer, "A" and "B", by its published name, which `names` has by ours."""
    # Those that are arranged otherwise over there: rotary queries and keys.
    turned = {key.ours: key.layout.to_ours for key in meta.keys(config) if key.layout.to_ours is not None}
    crosses = config.adapter.cross_layers if config.adapter else ()
    selves = [place for place in range(config.num_layers) if place not in crosses]
    halves: dict[str, dict[str, StoredTensor]] = {}
    odd = []
    for key, tensor in open_torch(folder, _file(folder), opened).items():
        match = _KEY.fullmatch(key)
        layer = None if match is None else _ours(match["layer"], selves)
        if layer not in names:
            odd.append(key)
            continue
        half, to_ours = match["half"].upper(), turned.get(f"{layer}.weight")
        if half == "B" and to_ours is not None:
            tensor = ComputedTensor(tensor.shape, tensor.dtype, partial(_turned, tensor, to_ours, config))
        halves.setdefault(names[layer], {})[half] = tensor
    odd += [layer for layer, pair in halves.items() if len(pair) != 2]
    if odd or not halves:
        raise invalid(
            f"{_file(folder)} has {len(odd)} tensors that are no pair of lora_a and lora_b of this model; "
            f"give plain LoRA and the model it was trained on: {', '.join(odd)}"
        )
    return halves


def _file(folder: Path) -> str | None:
    found = [path.name for path in folder.glob("adapter_*.pt") if re.fullmatch(r"adapter_(model|\d+)", path.stem)]
    # That of the last epoch, by its number.
    return max(found, key=lambda name: (len(name), name), default=None)


def _ours(theirs: str, selves: Sequence[int]) -> str | None:
    """Return our name of a layer; None for one that no model has whose self-attention layers stand at `selves`."""
    if theirs in _WHOLE:
        return _WHOLE[theirs]
    for pattern, ours in _MODULES:
        match = re.fullmatch(pattern, theirs)
        if match is None:
            continue
        place, part = int(match[1]), (_TEXT_PARTS if ours.startswith("decoder") else _VISION_PARTS).get(match[2])
        if part is None or (ours.startswith("decoder") and place >= len(selves)):
            return None
        own = selves[place] if ours.startswith("decoder") else place
        # A layer that looks at images is counted with the one that follows it.
        if "{cross}" in ours and (own == 0 or own - 1 in selves):
            return None
        return ours.format(same=place, self=own, cross=own - 1) + part
    return None


def _turned(up: StoredTensor, to_ours: Callable[[Tensor, ModelConfig], Tensor], config: ModelConfig) -> Tensor:
    """Return the second matrix of rotary queries or keys with its rows in our order."""
    return to_ours(up.load(), config)
