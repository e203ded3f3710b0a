"""Folders of low-rank adapters as the library PEFT has them: `adapter_config.json` and `adapter_model.safetensors`.

Those of torchtune are read too, see `vlm.checkpoint.torchtune`.

Which layers are adapted, and with which rank, is read from the weights; the settings give the strength. What would
change the computation and is not offered here is refused.
Source: peft, tuners/lora/config.py and utils/save_and_load.py.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from adapters.lora import AdapterError, LoRAConfig, LowRank, adapter_names, adapters_of, attach, set_strength
from vlm.checkpoint import hf, torchtune
from vlm.checkpoint.files import invalid, read_json
from vlm.checkpoint.hub import folder_path, local_folder
from vlm.checkpoint.safetensors_file import open_safetensors, write_safetensors
from vlm.checkpoint.staging import staged
from vlm.checkpoint.stored import StoredTensor
from vlm.config import ModelConfig
from vlm.errors import public
from vlm.model import VisionLanguageModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<half>[AB])(?:\.[^.]+)?\.weight")
# Where the head is adapted peft puts its own weight, which is frozen, beside the adapter.
_FROZEN_HEAD = re.compile(r"base_model\.model\.(.+\.)?lm_head\.base_layer\.weight")
# Beside plain low-rank matrices: not offered.
_FEATURES = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "trainable_token_indices",
    "target_parameters", "layer_replication", "alora_invocation_tokens", "arrow_config",
)  # fmt: skip
# Ways to begin that leave the layer's own weights alone; others store the difference to changed weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_PATCHES = "encoder.patch_embedding"
"""A linear layer here, a convolution over there."""
_MAX_PATTERN_CHARS = 200
# What lets a pattern match in several ways, which multiply: one of twenty characters could take years.
_CHOICE, _MAX_CHOICES = re.compile(r"\(\??|[*+?{]"), 5
_REPEATED_GROUP = re.compile(r"\)[*+{]")

Patterns = Sequence[tuple[re.Pattern, object]]
"""Patterns of the ends of layers' names, and what the settings have for these layers."""


@public
def load_adapter(
    model: VisionLanguageModel, folder: str | os.PathLike, name: str | None = None, *, strength: float = 1.0
) -> str:
    """Put the adapter in `folder` on top of those of `model` and return its name; without `name` it gets a number.

    Raises: VLMError (checkpoint_invalid) for what is no such adapter, or one of another model.
    """
    folder, settings = read_adapter_settings(folder)
    layers = _layer_names(model.config)
    ours = {theirs: name for name, theirs in layers.items()}
    with ExitStack() as opened:
        if torchtune.is_adapter(folder):
            halves = torchtune.read_halves(folder, model.config, opened, layers)
        else:
            halves = _halves(open_safetensors(folder, WEIGHTS, opened), model.config)
        unknown = [layer for layer in halves if layer not in ours]
        if unknown:
            raise invalid(
                f"the adapter has {len(unknown)} layers that this model has not; give the model it was trained on: "
                + ", ".join(unknown)
            )
        patterns = {name: _patterns(settings, name) for name in ("rank_pattern", "alpha_pattern")}
        found = {ours[layer]: _read(layer, pair, settings, patterns, model) for layer, pair in halves.items()}
    name = name or f"adapter{1 + len(adapter_names(model))}"
    try:
        attach(model, name, found)
    except AdapterError as error:
        raise invalid(str(error)) from None
    set_strength(model, name, strength)
    return name


def read_adapter_settings(folder: str | os.PathLike) -> tuple[Path, dict]:
    """Return where an adapter lies and its settings.

    Raises: VLMError (checkpoint_invalid) for what is no adapter, or one of a kind that is not read here.
    """
    given, folder = folder_path(folder), local_folder(folder)
    if folder is None:
        raise invalid(f"there is no folder {given.name:.80}; give the folder of an adapter")
    if torchtune.is_adapter(folder) and not (folder / CONFIG).exists():
        raise invalid(
            f"{folder.name} is torchtune's and does not say how strong the adapter is; write beside it {CONFIG} with "
            '{"peft_type": "LORA", "lora_alpha": ...} as in the recipe'
        )
    settings = read_json(folder, CONFIG)
    _check_settings(settings)
    return folder, settings


@public
def save_adapter(
    model: VisionLanguageModel, folder: str | os.PathLike, name: str = "default", base: str | None = None
) -> None:
    """Write the adapter `name` of `model` into `folder`; `base` is where its model is found."""
    names, chosen = _layer_names(model.config), adapters_of(model, name)
    if not chosen:
        raise invalid(f"the model has no adapter named {name!r:.60}; add one first")
    tensors = {}
    for place, adapter in chosen.items():
        layer = hf.today(names[place], model.config)
        down, up = adapter.down, adapter.up
        if place == _PATCHES:
            # Patches are flattened as (c y x).
            size = model.config.vision.patch_size
            down, up = down.unflatten(1, (3, size, size)), up[:, :, None, None]
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = down
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = up
    settings = _settings(names, chosen, model.config, base)
    with staged(folder_path(folder), last=(CONFIG,)) as staging:
        write_safetensors(staging / WEIGHTS, tensors)
        (staging / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def _layer_names(config: ModelConfig) -> dict[str, str]:
    """Return the published name of every linear layer by ours."""
    return {
        key.ours.removesuffix(".weight"): key.theirs.removesuffix(".weight")
        for key in hf.keys(config)
        if re.search(r"(_proj|fc[12]|projector|head|patch_embedding)\.weight$", key.ours)
    }


def _check_settings(settings: dict) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise invalid(f"{CONFIG} has the peft_type {kind!r:.40}; expected LORA; only low-rank adapters are offered")
    for name in _FEATURES:
        if settings.get(name):
            raise invalid(f"{CONFIG} sets {name}, which is not offered; merge the adapter with peft and load the model")
    if settings.get("bias", "none") != "none":
        raise invalid(f"{CONFIG} trains biases; expected bias none; merge the adapter with peft and load the model")
    start = settings.get("init_lora_weights")
    if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
        raise invalid(
            f"{CONFIG} says init_lora_weights {start!r:.40}, which changes the model's own weights too; "
            "convert the adapter to plain LoRA with peft"
        )


def _halves(stored: dict[str, StoredTensor], config: ModelConfig) -> dict[str, dict[str, StoredTensor]]:
    """Return both matrices of each adapted layer by its published name."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    odd = []
    for key, tensor in stored.items():
        if _FROZEN_HEAD.fullmatch(key):
            continue
        match = _KEY.fullmatch(key)
        if match is None:
            odd.append(key)
            continue
        halves.setdefault(hf.published(match["layer"], config), {})[match["half"]] = tensor
    odd += [layer for layer, pair in halves.items() if len(pair) != 2]
    if odd or not halves:
        raise invalid(
            f"{WEIGHTS} has {len(odd)} tensors that are no pair of lora_A and lora_B; save plain LoRA: {', '.join(odd)}"
        )
    return halves


def _patterns(settings: dict, name: str) -> Patterns:
    """Return the numbers that settings have for some layers, each with the pattern of these layers' names."""
    found = settings.get(name) or {}
    if not isinstance(found, dict):
        raise invalid(f"{CONFIG} gives {name} as {found!r:.40}; expected numbers by names of layers; save it again")
    patterns = []
    for pattern, value in found.items():
        is_simple = len(_CHOICE.findall(pattern)) <= _MAX_CHOICES and not _REPEATED_GROUP.search(pattern)
        if len(pattern) > _MAX_PATTERN_CHARS or not is_simple:
            raise invalid(
                f"{CONFIG} has {pattern!r:.60} in {name}, which may take very long to match; give names of layers"
            )
        try:
            # Source: peft, utils/other.py, get_pattern_key.
            patterns.append((re.compile(rf"(.*\.)?({pattern})$"), value))
        except (re.error, OverflowError) as error:
            raise invalid(f"{CONFIG} has {pattern!r:.60} in {name}: {error}; give names of layers") from None
    return patterns


def _read(
    layer: str,
    pair: dict[str, StoredTensor],
    settings: dict,
    patterns: dict[str, Patterns],
    model: VisionLanguageModel,
) -> LowRank:
    down, up = pair["A"], pair["B"]
    # A convolution's second half is one of single points.
    if len(down.shape) not in (2, 4) or up.shape[2:] != (1,) * (len(down.shape) - 2) or down.shape[0] != up.shape[1]:
        raise invalid(f"{layer} has matrices of {list(down.shape)} and {list(up.shape)}; expected [r, in] and [out, r]")
    spellings = (layer, hf.today(layer, model.config))
    config = LoRAConfig(
        rank=down.shape[0],
        alpha=_number(settings, "lora_alpha", 8, patterns["alpha_pattern"], spellings),
        dropout=_number(settings, "lora_dropout", 0.0),
        rslora=bool(settings.get("use_rslora")),
        targets=(layer,),
    )
    rank = _number(settings, "r", config.rank, patterns["rank_pattern"], spellings)
    if rank != config.rank:
        raise invalid(f"{layer} has rank {config.rank} and {CONFIG} says {rank}; settings and weights are not one's")
    device = model.decoder.embedding.weight.device
    with torch.inference_mode(False):
        return LowRank(down.load().flatten(1).to(device), up.load().flatten(1).to(device), config)


def _number(
    settings: dict, name: str, default: float, patterns: Patterns = (), spellings: tuple[str, ...] = ()
) -> float:
    """Return a number of the settings: that of the first pattern that fits a layer's name, or else that for all."""
    value = settings.get(name, default)
    for pattern, special in patterns:
        if any(pattern.match(spelt) for spelt in spellings):
            value = special
            break
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise invalid(f"{CONFIG} gives {name} as {value!r:.40}; expected a number; save the adapter again")
    return value


def _settings(names: dict[str, str], chosen: dict[str, LowRank], config: ModelConfig, base: str | None) -> dict:
    """Return the settings by which peft builds the same adapters."""
    spelt = {place: hf.today(name, config) for place, name in names.items()}
    ends = {place: name.rsplit(".", 1)[-1] for place, name in spelt.items()}
    wanted = {ends[place] for place in chosen}
    # The last parts of names where they say it all, as people write them; else whole names.
    targets = sorted(wanted)
    if sum(end in wanted for end in ends.values()) != len(chosen):
        targets = [spelt[place] for place in chosen]
    rank, alpha, dropout, rslora = Counter(
        (each.config.rank, each.config.alpha, each.config.dropout, each.config.rslora) for each in chosen.values()
    ).most_common(1)[0][0]
    odd = {spelt[place]: each.config for place, each in chosen.items()}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "target_modules": targets,
        "rank_pattern": {re.escape(name): one.rank for name, one in odd.items() if one.rank != rank},
        "alpha_pattern": {re.escape(name): one.alpha for name, one in odd.items() if one.alpha != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "task_type": None,
    }
