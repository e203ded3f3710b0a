"""Random weights of the small models, in Hugging Face's names and layout, with every gate open."""

import math
from typing import Literal

import torch
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration

from .cases import Grid, SmallConfig

State = dict[str, Tensor]

# The three position tables: one row an aspect-ratio id (0 is "no image"), `max_tiles` slots a row.
POSITION_TABLES = (
    "model.vision_model.gated_positional_embedding.tile_embedding.weight",
    "model.vision_model.pre_tile_positional_embedding.embedding.weight",
    "model.vision_model.post_tile_positional_embedding.embedding.weight",
)


def mllama_config(config: SmallConfig) -> MllamaConfig:
    """The transformers config of a small model."""
    vision = {
        "hidden_size": config.vision_dim,
        "num_hidden_layers": config.num_local_layers,
        "num_global_layers": config.num_global_layers,
        "attention_heads": config.vision_heads,
        "intermediate_size": config.vision_mlp_dim,
        "vision_output_dim": config.vision_dim * (1 + len(config.feature_layers)),
        "image_size": config.tile_size,
        "patch_size": config.patch_size,
        "max_num_tiles": config.max_tiles,
        "intermediate_layers_indices": list(config.feature_layers),
        "supported_aspect_ratios": [list(grid) for grid in config.grids],
    }
    text = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.text_dim,
        "num_hidden_layers": config.num_text_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.text_mlp_dim,
        "cross_attention_layers": list(config.cross_layers),
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": config.rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    return MllamaConfig(vision_config=vision, text_config=text, image_token_index=config.marker)


def random_hf_state(
    config: SmallConfig, seed: int = 0, *, tables: Literal["cells", "random"] = "cells"
) -> tuple[MllamaConfig, State]:
    """A transformers config and random float32 weights for it, by the names of `state_dict()`.

    Gates are 0.3 to 1 away from zero, norm weights near 1, biases not zero. With `tables="cells"` the three position
    tables come from one `[t, t, …]` cell table each and are zero elsewhere, as in a checkpoint converted from Meta's;
    with "random" every slot is drawn, also those that no image can use, which no Meta checkpoint holds.
    """
    hf_config = mllama_config(config)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in MllamaForConditionalGeneration(hf_config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state = {name: _draw(name, shape, generator) for name, shape in shapes.items()}
    if tables == "cells":
        for name in POSITION_TABLES:
            cells = torch.randn(config.max_tiles, config.max_tiles, state[name][0].numel() // config.max_tiles,
                                generator=generator)  # fmt: skip
            state[name] = table_from_cells(0.5 * cells, config.grids)
    return hf_config, state


def table_from_cells(cells: Tensor, grids: list[Grid]) -> Tensor:
    """Spread cells `[rows, cols, x]` over a Hugging Face table `[1 + len(grids), t * x]`; unused slots are zero.

    Source: transformers 4.45, convert_mllama_weights_to_hf.py `pre_compute_positional_embedding`.
    """
    max_tiles, _, width = cells.shape
    table = torch.zeros(1 + len(grids), max_tiles, width)
    for ratio_id, (rows, cols) in enumerate(grids, start=1):
        table[ratio_id, : rows * cols] = cells[:rows, :cols].reshape(rows * cols, width)
    return table.flatten(1)


def cells_from_table(table: Tensor, grids: list[Grid], max_tiles: int) -> Tensor:
    """Gather the cells `[rows, cols, x]` of a table; cells that no image uses are zero.

    Raises ValueError where the table has no such form: equal cells differ, or an unused slot is not zero.
    """
    slots = table.unflatten(1, (max_tiles, -1))
    cells = torch.zeros(max_tiles, max_tiles, slots.shape[-1])
    for ratio_id, (rows, cols) in enumerate(grids, start=1):
        cells[:rows, :cols] = slots[ratio_id, : rows * cols].unflatten(0, (rows, cols))
    if not torch.equal(table_from_cells(cells, grids), table):
        raise ValueError("position table is not spread from one cell table; a Meta checkpoint cannot hold it")
    return cells


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """One random tensor whose scale keeps activations near 1 and whose gates are open."""
    noise = torch.randn(shape, generator=generator)
    if "gate" in name.rsplit(".", 1)[-1]:
        size = 0.3 + 0.7 * torch.rand(shape, generator=generator)
        return size.copysign(noise)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * noise
    if name.endswith("bias"):
        return 0.2 * noise
    if "embedding" in name or "embed_tokens" in name:
        return noise if "embed_tokens" in name else 0.5 * noise
    fan_in = math.prod(shape[1:])
    return noise / math.sqrt(fan_in)
