"""Low-rank adapters as torchtune saves them: `adapter_model.pt`, and of older versions `adapter_0.pt`.

Source: torchtune models/llama3_2_vision/_convert_weights.py and models/convert_weights.py (names, and the order of the
rows of rotary queries and keys, which is Meta's); training/checkpointing/_checkpointer.py (files).
"""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from vlm.checkpoint import meta
from vlm.checkpoint.files import invalid
from vlm.checkpoint.stored import ComputedTensor, StoredTensor
from vlm.checkpoint.torch_file import open_torch
from vlm.config import ModelConfig

_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[ab])\.weight")
# theirs, ours; {place} is that of a layer, among all of ours.
_MODULES = (
    (r"(?:decoder\.)?layers\.(\d+)\.fusion_layer\.(.+)", "decoder.layers.{cross}."),
    (r"(?:decoder\.)?layers\.(\d+)\.(.+)", "decoder.layers.{self}."),
    (r"encoder\.clip\.layers\.(\d+)\.(.+)", "encoder.local_layers.{same}."),
    (r"encoder\.projection\.layers\.(\d+)\.(.+)", "encoder.global_layers.{same}."),
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
    halves: dict[str, dict[str, StoredTensor]] = {}
    odd = []
    for key, tensor in open_torch(folder, _file(folder), opened).items():
        match = _KEY.fullmatch(key)
        layer = None if match is None else _ours(match["layer"], config)
        if layer not in names:
            odd.append(key)
            continue
        half = match["half"].upper()
        halves.setdefault(names[layer], {})[half] = _turned(layer, tensor, config) if half == "B" else tensor
    odd += [layer for layer, pair in halves.items() if len(pair) != 2]
    if odd or not halves:
        raise invalid(
            f"{_file(folder)} has {len(odd)} tensors that are no pair of lora_a and lora_b of this model; "
            f"give plain LoRA and the model it was trained on: {', '.join(odd)}"
        )
    return halves


def _file(folder: Path) -> str | None:
    found = sorted(path.name for path in folder.glob("adapter_*.pt") if re.fullmatch(r"adapter_(model|\d+)", path.stem))
    return found[-1] if found else None


def _ours(theirs: str, config: ModelConfig) -> str | None:
    """Return our name of a layer; None for one that this model has not."""
    if theirs in _WHOLE:
        return _WHOLE[theirs]
    crosses = config.adapter.cross_layers if config.adapter else ()
    selves = [place for place in range(config.num_layers) if place not in crosses]
    for pattern, ours in _MODULES:
        match = re.fullmatch(pattern, theirs)
        if match is None:
            continue
        place, part = int(match[1]), (_TEXT_PARTS if ours.startswith("decoder") else _VISION_PARTS).get(match[2])
        if part is None or (ours.startswith("decoder") and place >= len(selves)):
            return None
        # A layer that looks at images is counted with the one that follows it.
        own = selves[place] if ours.startswith("decoder") else place
        return ours.format(same=place, self=own, cross=own - 1) + part
    return None


def _turned(layer: str, up: StoredTensor, config: ModelConfig) -> StoredTensor:
    """Return the second matrix of rotary queries and keys with its rows in our order."""
    key = next((key for key in meta.keys(config) if key.ours == f"{layer}.weight"), None)
    if key is None or key.layout not in (meta._QUERIES, meta._KEYS):
        return up
    return ComputedTensor(up.shape, up.dtype, lambda: key.layout.to_ours(up.load(), config))
