"""`vlm info`: how large a model is and whether it fits, without reading its weights."""

from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import click

from vlm.commands.options import import_torch, json_option, reference_option
from vlm.commands.terminal import Command, say, say_json
from vlm.errors import VLMError

if TYPE_CHECKING:
    from vlm.config import ModelConfig
    from vlm.model_sizes import ModelSizes

_CONTEXT = 4096


class Memory(NamedTuple):
    """Memory that a model could live in."""

    device: str
    free_bytes: int | None
    """None where it cannot be told."""
    maps: str | None = None
    """The dtype in which weights that are looked at seldom may stay in their files, if any."""


@click.command(cls=Command, short_help="Sizes of a model, and whether it fits this machine.")
@click.argument("model", metavar="[MODEL or PRESET]", required=False)
@reference_option
@json_option
def info(model: str | None, reference: str, as_json: bool):
    """Show a model's sizes, its memory in each precision, and whether it fits this machine.

    MODEL is a checkpoint's folder, of which only the settings are read; without it, the model that ships. A PRESET
    needs no weights: 11b-vision, 11b-vision-base, 90b-vision, 90b-vision-base, 1b, 3b, 8b, 70b, default, tiny. A folder
    of such a name is written ./tiny. Nothing is downloaded.

    \b
    vlm info
    vlm info 11b-vision
    vlm info ./Llama-3.2-11B-Vision-Instruct --json | tail -n 1
    """
    import_torch()
    from vlm.model_sizes import ModelSizes

    title, config, stored = _config(model)
    sizes = ModelSizes.of(config.with_reference(reference))
    memories = _memories(_mapped_dtype(model))
    _show(title, stored, sizes, memories)
    if as_json:
        say_json({**_record(title, sizes, memories), "stored": stored})


def _config(model: str | None) -> tuple[str, "ModelConfig", str | None]:
    """Return what to call the model, its config, and how its weights are quantised where they are."""
    from vlm import checkpoint
    from vlm.checkpoint.hub import local_folder
    from vlm.config import PRESETS, preset
    from vlm.pipeline import DEFAULT_MODEL

    if model is None:
        return "the shipped model", checkpoint.read_config(DEFAULT_MODEL), None
    if model in PRESETS:
        return f"{model} (preset)", preset(model), None
    folder = local_folder(model)
    if folder is None:
        raise VLMError(
            "invalid_request",
            f"no folder and no preset is named {model!r:.80}; give a checkpoint's folder (vlm info downloads nothing), "
            f"or one of {', '.join(PRESETS)}",
        )
    return folder.resolve().name, checkpoint.read_config(folder), checkpoint.stored_precision(folder)


def _mapped_dtype(model: str | None) -> str | None:
    """Return the dtype in which weights may stay in their files: that of safetensors files; a preset has bfloat16."""
    from vlm.checkpoint import hf_config
    from vlm.checkpoint.hub import local_folder
    from vlm.config import PRESETS

    if model is None or model in PRESETS:
        return "bfloat16"
    folder = local_folder(model)
    dtype = hf_config.read_dtype(folder) if (folder / hf_config.CONFIG).exists() else None
    return dtype and str(dtype).removeprefix("torch.")


def _memories(maps: str | None) -> list[Memory]:
    """Return the memory of this machine and of its accelerators."""
    import torch

    from vlm.checkpoint.memory import free_bytes

    memories = [Memory("cpu", free_bytes(), maps)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name = f"cuda:{index} ({torch.cuda.get_device_name(index)})"
            memories.append(Memory(name, torch.cuda.mem_get_info(index)[0]))
    return memories


def _num_tokens(sizes: "ModelSizes") -> int:
    return min(_CONTEXT, sizes.config.decoder.max_context)


def _fits(sizes: "ModelSizes", precision: str, memory: Memory, *, on_disk: bool = True) -> bool | None:
    """Return whether a model fits; `on_disk`, with what may stay in its files left out."""
    if memory.free_bytes is None:
        return None
    is_stored_so = memory.maps == ("float32" if precision == "float32" else "bfloat16")
    left_out = sizes.disk_bytes(precision) if on_disk and is_stored_so else 0
    return sizes.needed_bytes(precision, _num_tokens(sizes)) - left_out <= memory.free_bytes


def _answer(sizes: "ModelSizes", precision: str, memory: Memory) -> str:
    if _fits(sizes, precision, memory) and not _fits(sizes, precision, memory, on_disk=False):
        return f"yes, {_bytes(sizes.disk_bytes(precision))} of it left in the files"
    return {True: "yes", False: "no", None: "unknown"}[_fits(sizes, precision, memory)]


def _show(title: str, stored: str | None, sizes: "ModelSizes", memories: list[Memory]) -> None:
    from vlm.model_sizes import PRECISIONS, describe, describe_reference

    config = sizes.config
    parts = ", ".join(f"{name} {count:,}" for name, count in sizes.parts.items())
    lines = {
        "parameters": f"{sizes.num_parameters:,} ({parts})" if config.vision else f"{sizes.num_parameters:,}",
        **describe(config),
        "reference": describe_reference(config),
        "text": f"{_bytes(sizes.token_bytes())} of keys and values a token in bfloat16, "
        f"{_bytes(sizes.token_bytes() * config.decoder.max_context)} for the whole context",
    }
    if stored is not None:
        lines["stored"] = stored
    if config.vision:
        lines["image"] = f"{_bytes(sizes.tile_bytes())} of keys and values a tile in bfloat16"
    say(title)
    for name, text in lines.items():
        say(f"  {name:<11} {text}")
    image = f" and an image of {config.vision.max_tiles} tiles" if config.vision else ""
    say(f"\n  {'':<11} {'weights':>9}  with {_num_tokens(sizes):,} tokens{image}: fits?")
    for precision in PRECISIONS:
        needed = sizes.needed_bytes(precision, _num_tokens(sizes))
        fits = ", ".join(f"{memory.device} {_answer(sizes, precision, memory)}" for memory in memories)
        say(f"  {precision:<11} {_bytes(sizes.weight_bytes(precision)):>9}  {_bytes(needed):>9}: {fits}")
    free = ", ".join(
        f"{_bytes(each.free_bytes) if each.free_bytes else 'unknown'} on {each.device}" for each in memories
    )
    say(f"  free now    {free}")
    say("  int8 and int4 (groups of 128 where they divide a row) are of the decoder's matrices, the head always int8;")
    say("  embedding, norms, gates and vision stay bfloat16")


def _record(title: str, sizes: "ModelSizes", memories: list[Memory]) -> dict:
    from vlm.model_sizes import PRECISIONS

    vision = sizes.config.vision
    return {
        "model": title,
        "reference": sizes.config.reference,
        "num_parameters": sizes.num_parameters,
        "parts": sizes.parts,
        "max_context": sizes.config.decoder.max_context,
        "tile_size": vision.tile_size if vision else None,
        "max_tiles": vision.max_tiles if vision else None,
        "weight_bytes": {precision: sizes.weight_bytes(precision) for precision in PRECISIONS},
        "token_bytes": sizes.token_bytes(),
        "tile_bytes": sizes.tile_bytes(),
        "fits": {
            memory.device: {precision: _fits(sizes, precision, memory) for precision in PRECISIONS}
            for memory in memories
        },
        "free_bytes": {memory.device: memory.free_bytes for memory in memories},
        "config": asdict(sizes.config),
    }


def _bytes(count: int) -> str:
    """Return a number of bytes in decimal units, as disks and model cards count."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{1 if count >= 10 * size or unit == 'GB' else 2}f} {unit}"
    return f"{count} B"
