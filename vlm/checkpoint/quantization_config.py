"""What config.json says about quantised weights, whichever program made them; what cannot be read is refused by name.

Source: compressed-tensors quantization/quant_config.py; transformers utils/quantization_config.py for other methods;
mlx-vlm quant_utils.py, `quantize_model`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from vlm.quantization import Scheme

METHOD, BITSANDBYTES, MLX = "compressed-tensors", "bitsandbytes", "MLX"
_PACKED = "pack-quantized"
_FORMATS = (_PACKED, "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
_PRESETS = ("W4A16", "W4A16_ASYM", "W8A16", "W8A8", "INT8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK")
_ACTIVATIONS = ("input_activations", "output_activations")
_ELSE = 'give the original weights with quantize="int8" or "int4"'
# What makes of another method's weights some that can be read.
_CONVERTED = {
    "awq": "make it a compressed-tensors checkpoint with that library's AutoAWQConverter",
    "fp8": "expand it with compressed-tensors' FP8BlockDequantizer",
    BITSANDBYTES: "load it in transformers, call model.dequantize() and save it",
}
_EXPANDED = "have the program that made it write it expanded"


class Quantization(NamedTuple):
    """How a checkpoint's weights are quantised, as far as its settings say."""

    method: str
    """Whose way of storing them it is."""
    kinds: str
    """In words."""
    of_activations: bool = False
    """Whether it was made for quantised activations or caches too."""

    @property
    def stays(self) -> bool:
        """Whether layers here compute with weights as they are stored: whole numbers of compressed-tensors."""
        return self.method == METHOD and not self.kinds.startswith(("float", "FP8"))


def quantization_of(settings: Mapping) -> Quantization | None:
    """Return how a config.json says weights are quantised; None where it does not.

    Raises ValueError that names any other tool's format.
    """
    found = settings.get("quantization_config")
    found = settings.get("compression_config") if found is None else found
    is_mlx = isinstance(found, dict) and {"bits", "group_size"} <= set(found) and "quant_method" not in found
    if is_mlx or settings.get("quantization") is not None:
        return _of_mlx(found if is_mlx else settings["quantization"])
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"quantization_config is of type {type(found).__name__}; {_ELSE}")
    method = found.get("quant_method", METHOD if "config_groups" in found else None)
    if method is None:
        raise ValueError(f"it sets quantization_config to dict without a quant_method; {_ELSE}")
    kind = found.get("bnb_4bit_quant_type") if found.get("load_in_4bit") else found.get("fmt")
    if method == BITSANDBYTES and kind in ("nf4", "fp4"):
        nested = " with double quantisation" if found.get("bnb_4bit_use_double_quant") else ""
        return Quantization(BITSANDBYTES, f"{kind}{nested} ({BITSANDBYTES})")
    if method != METHOD:
        kind = f" ({kind!s:.20})" if kind else ""
        raise ValueError(f"its weights are quantised by {method!s:.40}{kind}, which cannot be read; "
                         f"{_CONVERTED.get(method, _EXPANDED)}, or {_ELSE}")  # fmt: skip
    if found.get("format") not in _FORMATS:
        raise ValueError(f"its weights are in {METHOD}' format {found.get('format')!r:.40}; expected one of "
                         f"{', '.join(_FORMATS)}: {_ELSE}")  # fmt: skip
    for name in ("sparsity_config", "transform_config"):
        if (extra := found.get(name)) and extra != {"format": "dense"}:
            raise ValueError(f"quantization_config sets {name}, which cannot be computed; {_ELSE}")
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ValueError("quantization_config has no config_groups; download config.json again")
    for name, group in groups.items():
        _check_group(name, group)
    return Quantization(METHOD, _kinds(found), _is_of_activations(found))


def _of_mlx(found: object) -> Quantization:
    """Read MLX's settings, where a layer that is quantised otherwise stands beside them under its name."""
    layers = [found, *found.values()] if isinstance(found, dict) else [{"mode": type(found).__name__}]
    layers = [layer for layer in layers if isinstance(layer, dict)]
    modes = {str(layer.get("mode", "affine")) for layer in layers} - {"affine"}
    if modes:
        raise ValueError(f"its weights are quantised by MLX as {min(modes):.40}, which cannot be read; "
                         f"expected affine: {_EXPANDED}, or {_ELSE}")  # fmt: skip
    kinds = [f"{layer['bits']!s:.9} bits in groups of {layer.get('group_size')!s:.9}" for layer in layers
             if "bits" in layer]  # fmt: skip
    return Quantization(MLX, f"{' and '.join(dict.fromkeys(kinds)) or 'some layers'} ({MLX})")


def _check_group(name: str, group: object) -> None:
    if isinstance(group, list) and name.upper() in _PRESETS:
        return
    weights = group.get("weights") if isinstance(group, dict) else group
    if isinstance(group, dict) and weights is None:
        return
    if not isinstance(weights, dict) or group.get("format") not in (None, *_FORMATS):
        raise ValueError(f"quantization_config has a group {name!r:.40} that cannot be read; {_ELSE}")
    bits, kind, order = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("actorder")
    if order not in (None, False, "weight", "static") or (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
        order = "" if order is None else f", actorder {order!s:.20}"
        raise ValueError(f"quantization_config has weights of type {kind!s:.20} of {bits!s:.20} bits{order}; expected "
                         f"int of 4 or 8, or float of 8, without actorder: {_ELSE}")  # fmt: skip


def _kinds(found: dict) -> str:
    kinds = []
    for name, group in found["config_groups"].items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(group, list):
            kinds.append(name.upper())
        elif weights is not None:
            size = weights.get("group_size")
            groups = f" in groups of {size}" if type(size) is int and size > 0 else ""
            kinds.append(f"{weights.get('type', 'int')}{weights.get('num_bits', 8)}{groups}")
    return f"{' and '.join(dict.fromkeys(kinds)) or 'nothing'} ({METHOD}, {found['format']})"


def _is_of_activations(found: dict) -> bool:
    groups = found["config_groups"]
    presets = {name.upper() for name, group in groups.items() if isinstance(group, list)}
    named = [group.get(part) for group in groups.values() if isinstance(group, dict) for part in _ACTIVATIONS]
    return any(named) or bool(presets - {"W4A16", "W4A16_ASYM", "W8A16"}) or bool(found.get("kv_cache_scheme"))


def write_quantization(schemes: Mapping[str, Scheme | None]) -> dict:
    """Return the quantization_config of a model whose linear layers, by their names in the file, are stored so.

    Layers are named by the ends of their names, for other programs call what is above them otherwise: by the last part
    where all of that name are stored alike, else from the number of the layer on.
    """
    kinds: dict[str, set[Scheme | None]] = {}
    for module, scheme in schemes.items():
        kinds.setdefault(module.rsplit(".", 1)[-1], set()).add(scheme)
    targets: dict[Scheme, set[str]] = {}
    for module, scheme in schemes.items():
        last = module.rsplit(".", 1)[-1]
        end = last if len(kinds[last]) == 1 else "layers." + module.rpartition("layers.")[2]
        if scheme is not None:
            targets.setdefault(scheme, set()).add(rf"re:.*\b{re.escape(end)}$")
    groups = {
        f"group_{number}": {
            "targets": sorted(names),
            "weights": _weights(scheme),
            "input_activations": None,
            "output_activations": None,
        }
        for number, (scheme, names) in enumerate(targets.items())
    }
    return {
        "quant_method": METHOD,
        "format": _PACKED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ["re:.*vision_model.*", "re:.*multi_modal_projector.*"],
        "config_groups": groups,
    }


def _weights(scheme: Scheme) -> dict:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
        "actorder": None,
    }
