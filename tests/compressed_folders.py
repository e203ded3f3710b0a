"""Folders of quantised weights as the compressed-tensors library itself makes them, and what it reads in them."""

import json
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

from vlm.checkpoint import save_model
from vlm.model import VisionLanguageModel

# As LLM Compressor leaves them: quantised are linear layers of the decoder, in the vision tower and the head none.
IGNORED = ["re:.*lm_head", "re:.*multi_modal_projector.*", "re:.*vision_model.*"]
_INT = {"type": "int", "dynamic": False}
_FLOAT = {"type": "float", "num_bits": 8, "symmetric": True, "dynamic": False}
# name: format, weights, activations
KINDS = {
    "W4A16": ("pack-quantized", {**_INT, "num_bits": 4, "strategy": "group", "group_size": 16}, None),
    "W4A16, rows": ("pack-quantized", {**_INT, "num_bits": 4, "strategy": "channel"}, None),
    "W4A16 asymmetric": (
        "pack-quantized",
        {**_INT, "num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False},
        None,
    ),
    "W8A16": ("pack-quantized", {**_INT, "num_bits": 8, "strategy": "channel"}, None),
    "W8A16 in groups": ("pack-quantized", {**_INT, "num_bits": 8, "strategy": "group", "group_size": 16}, None),
    "W8A16 asymmetric": ("pack-quantized", {**_INT, "num_bits": 8, "strategy": "channel", "symmetric": False}, None),
    "W8A8": (
        "int-quantized",
        {**_INT, "num_bits": 8, "strategy": "channel"},
        {**_INT, "num_bits": 8, "strategy": "token", "dynamic": True},
    ),
    "FP8, one scale": ("float-quantized", {**_FLOAT, "strategy": "tensor"}, {**_FLOAT, "strategy": "tensor"}),
    "FP8, rows": (
        "float-quantized",
        {**_FLOAT, "strategy": "channel"},
        {**_FLOAT, "strategy": "token", "dynamic": True},
    ),
}


def write(model: VisionLanguageModel, folder: Path, kind: str) -> Path:
    """Write a folder of that kind, and return another with the weights as the library reads them."""
    format, weights, activations = KINDS[kind]
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**weights),
        input_activations=None if activations is None else QuantizationArgs(**activations),
    )
    compressor = BaseCompressor.get_value_from_registry(format)
    save_model(model, folder)
    stored, expanded = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored[name] = expanded[name] = tensor
        if "language_model.model" in name and name.endswith("_proj.weight"):
            module = name.removesuffix("weight")
            parts = compressor.compress({"weight": tensor, **_scales(tensor, scheme.weights)}, scheme)
            del stored[name]
            stored |= {module + part: value.contiguous() for part, value in parts.items()}
            if kind == "FP8, one scale":
                stored[f"{module}input_scale"] = torch.ones(1)
            expanded[name] = compressor.decompress(parts, scheme)["weight"].to(tensor.dtype)
    twin = folder.with_name(f"{folder.name} expanded")
    save_model(model, twin)
    save_file(expanded, twin / "model.safetensors")
    save_file(stored, folder / "model.safetensors")
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=format, ignore=IGNORED, quantization_status="compressed"
    )
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = config.model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(settings))
    return twin


def _scales(weight: torch.Tensor, args: QuantizationArgs) -> dict[str, torch.Tensor]:
    """Return what the library's own min-max observer finds."""
    groups = weight.shape[1] // args.group_size if args.group_size and args.group_size > 0 else 1
    seen = weight.flatten()[None, None] if args.strategy == "tensor" else weight.unflatten(1, (groups, -1))
    scales, zeros = calculate_qparams(seen.amin(-1), seen.amax(-1), args)
    if args.strategy == "tensor":
        scales, zeros = scales.flatten(), zeros.flatten()
    return {"weight_scale": scales, "weight_zero_point": zeros}
