"""Meta's folders: the key table of `CrossAttentionTransformer` and of the text-only `Transformer`.

The last column but one says how model-parallel files divide a tensor.
Source: llama-models models/llama3/multimodal/model.py and models/llama3/model.py; fairscale's ColumnParallelLinear
and VocabParallelEmbedding divide axis 0, RowParallelLinear axis 1 of the weight and keeps its bias whole.
"""

import re
from contextlib import ExitStack
from pathlib import Path

from einops import rearrange

from vlm.checkpoint.files import invalid
from vlm.checkpoint.keys import SAME, Key, Layout, Rows, fill
from vlm.checkpoint.position_tables import cells_from_slots, slots_from_cells
from vlm.checkpoint.stored import SplitTensor, StoredTensor
from vlm.checkpoint.torch_file import open_torch
from vlm.config import ModelConfig

WEIGHTS = "consolidated.00.pth"
_COLUMN, _ROW = 0, 1


def _rotary(num_heads: str) -> Layout:
    """Meta turns neighbouring rows of a head by one angle, we rows half a head apart."""
    return Layout(
        lambda ours, config: rearrange(
            ours, "(heads half pair) d -> (heads pair half) d", heads=getattr(config.decoder, num_heads), half=2
        ),
        lambda theirs, config: rearrange(
            theirs, "(heads pair half) d -> (heads half pair) d", heads=getattr(config.decoder, num_heads), half=2
        ),
    )


_QUERIES, _KEYS = _rotary("num_heads"), _rotary("num_kv_heads")
_TOKENS = Layout(lambda ours, config: ours[: config.decoder.vocab_size])
_MARKERS = Layout(lambda ours, config: ours[config.decoder.vocab_size :])
_CELLS = Layout(
    lambda ours, config: cells_from_slots(ours, config.vision),
    lambda theirs, config: slots_from_cells(theirs, config.vision),
)
_TILE_CELLS = Layout(
    lambda ours, config: cells_from_slots(ours, config.vision).unsqueeze(2),
    lambda theirs, config: slots_from_cells(theirs.squeeze(2), config.vision),
)

# ours, theirs, layout, split, alias. {text} is `text_model.` or, in text-only folders, nothing.
_TEXT: Rows = (
    ("decoder.embedding.weight", "{text}tok_embeddings.weight", _TOKENS, _COLUMN),
    ("decoder.norm.weight", "{text}norm.weight"),
)
_HEAD: Rows = (("decoder.head.weight", "{text}output.weight", SAME, _COLUMN),)
_TIED_HEAD: Rows = (("decoder.embedding.weight", "{text}output.weight", SAME, _COLUMN, True),)
_MARKER_ROWS: Rows = (("decoder.embedding.weight", "{text}learnable_embedding.weight", _MARKERS, _COLUMN),)
_SELF_LAYER: Rows = (
    ("decoder.layers.{place}.attention.q_proj.weight", "{theirs}.attention.wq.weight", _QUERIES, _COLUMN),
    ("decoder.layers.{place}.attention.k_proj.weight", "{theirs}.attention.wk.weight", _KEYS, _COLUMN),
)
_CROSS_LAYER: Rows = (
    ("decoder.layers.{place}.attention.q_proj.weight", "{theirs}.attention.wq.weight", SAME, _COLUMN),
    ("decoder.layers.{place}.attention.k_proj.weight", "{theirs}.attention.wk.weight", SAME, _COLUMN),
    ("decoder.layers.{place}.attention.q_norm.weight", "{theirs}.attention.q_norm.weight"),
    ("decoder.layers.{place}.attention.k_norm.weight", "{theirs}.attention.k_norm.weight"),
    ("decoder.layers.{place}.attention_gate", "{theirs}.gate_attn"),
    ("decoder.layers.{place}.mlp_gate", "{theirs}.gate_ffwd"),
)
_EITHER_LAYER: Rows = (
    ("decoder.layers.{place}.attention.v_proj.weight", "{theirs}.attention.wv.weight", SAME, _COLUMN),
    ("decoder.layers.{place}.attention.o_proj.weight", "{theirs}.attention.wo.weight", SAME, _ROW),
    ("decoder.layers.{place}.attention_norm.weight", "{theirs}.attention_norm.weight"),
    ("decoder.layers.{place}.mlp_norm.weight", "{theirs}.ffn_norm.weight"),
    ("decoder.layers.{place}.mlp.gate_proj.weight", "{theirs}.feed_forward.w1.weight", SAME, _COLUMN),
    ("decoder.layers.{place}.mlp.down_proj.weight", "{theirs}.feed_forward.w2.weight", SAME, _ROW),
    ("decoder.layers.{place}.mlp.up_proj.weight", "{theirs}.feed_forward.w3.weight", SAME, _COLUMN),
)
_VISION: Rows = (
    ("encoder.patch_embedding.weight", "{vision}.conv1._linear.weight", SAME, _COLUMN),
    ("encoder.class_embedding", "{vision}.class_embedding"),
    ("encoder.tile_position_before.gate", "{vision}.pre_tile_pos_embed.gate"),
    ("encoder.tile_position_before.table", "{vision}.pre_tile_pos_embed.embedding", _TILE_CELLS),
    ("encoder.tile_position_after.gate", "{vision}.post_tile_pos_embed.gate"),
    ("encoder.tile_position_after.table", "{vision}.post_tile_pos_embed.embedding", _TILE_CELLS),
    ("encoder.patch_position.gate", "{vision}.gated_positional_embedding_gate"),
    ("encoder.patch_position.embedding", "{vision}.positional_embedding"),
    ("encoder.patch_position.table", "{vision}.gated_positional_embedding", _CELLS),
    ("encoder.norm_before.weight", "{vision}.ln_pre.weight"),
    ("encoder.norm_before.bias", "{vision}.ln_pre.bias"),
    ("encoder.norm_after.weight", "{vision}.ln_post.weight"),
    ("encoder.norm_after.bias", "{vision}.ln_post.bias"),
    ("projector.weight", "vision_model.vision_projection.weight", SAME, _COLUMN),
    ("projector.bias", "vision_model.vision_projection.bias", SAME, _COLUMN),
)
_VISION_LAYER: Rows = (
    ("{ours}.{place}.attention.q_proj.weight", "{theirs}.{place}.attn.wq.weight", SAME, _COLUMN),
    ("{ours}.{place}.attention.k_proj.weight", "{theirs}.{place}.attn.wk.weight", SAME, _COLUMN),
    ("{ours}.{place}.attention.v_proj.weight", "{theirs}.{place}.attn.wv.weight", SAME, _COLUMN),
    ("{ours}.{place}.attention.o_proj.weight", "{theirs}.{place}.attn.wo.weight", SAME, _ROW),
    ("{ours}.{place}.attention_norm.weight", "{theirs}.{place}.ln_1.weight"),
    ("{ours}.{place}.attention_norm.bias", "{theirs}.{place}.ln_1.bias"),
    ("{ours}.{place}.mlp_norm.weight", "{theirs}.{place}.ln_2.weight"),
    ("{ours}.{place}.mlp_norm.bias", "{theirs}.{place}.ln_2.bias"),
    ("{ours}.{place}.fc1.weight", "{theirs}.{place}.mlp.c_fc.weight", SAME, _COLUMN),
    ("{ours}.{place}.fc1.bias", "{theirs}.{place}.mlp.c_fc.bias", SAME, _COLUMN),
    ("{ours}.{place}.fc2.weight", "{theirs}.{place}.mlp.c_proj.weight", SAME, _ROW),
    ("{ours}.{place}.fc2.bias", "{theirs}.{place}.mlp.c_proj.bias"),
)
_GATES: Rows = (
    ("{ours}.{place}.attention_gate", "{theirs}.{place}.gate_attn"),
    ("{ours}.{place}.mlp_gate", "{theirs}.{place}.gate_ffn"),
)
_ENCODER = "vision_model.vision_encoder"
# A buffer of Meta's that follows from params.json.
_BUFFER = re.compile(r"(text_model\.)?rope\.freqs")


def keys(config: ModelConfig) -> list[Key]:
    """Return every key of a model, in the order of the model."""
    text = "" if config.vision is None else "text_model."
    table = list(_vision_keys(config)) if config.vision is not None else []
    table += fill(_TEXT, text=text)
    if config.decoder.num_extra_embeddings:
        table += fill(_MARKER_ROWS, text=text)
    table += fill(_TIED_HEAD if config.decoder.tied else _HEAD, text=text)
    cross_layers = config.adapter.cross_layers if config.adapter else ()
    for place in range(config.num_layers):
        earlier = sum(cross < place for cross in cross_layers)
        if place in cross_layers:
            theirs, rows = f"{text}cross_attention_layers.{earlier}", _CROSS_LAYER
        else:
            theirs, rows = f"{text}layers.{place - earlier}", _SELF_LAYER
        table += fill(rows + _EITHER_LAYER, place=place, theirs=theirs)
    return table


def _vision_keys(config: ModelConfig) -> list[Key]:
    table = list(fill(_VISION, vision=_ENCODER))
    for rows, ours, theirs, count in (
        (_VISION_LAYER, "local_layers", "transformer", config.vision.num_local_layers),
        (_VISION_LAYER + _GATES, "global_layers", "global_transformer", config.vision.num_global_layers),
    ):
        for place in range(count):
            table += fill(rows, ours=f"encoder.{ours}", theirs=f"{_ENCODER}.{theirs}.resblocks", place=place)
    return table


def open_tensors(folder: Path, config: ModelConfig, opened: ExitStack) -> dict[str, StoredTensor]:
    """Return the tensors of `folder`, put together where several files hold parts of them."""
    names = _weight_files(folder)
    files = [open_torch(folder, name, opened) for name in names]
    first = files[0]
    for name, file in zip(names, files, strict=True):
        if set(file) != set(first):
            odd = sorted(set(file) ^ set(first))
            raise invalid(f"{name} and {names[0]} hold other tensors: {', '.join(odd)}; give the files of one model")
    _check_count(folder, config, files)
    splits = {key.theirs: key.split for key in keys(config)}
    tensors: dict[str, StoredTensor] = {}
    for key in first:
        if _BUFFER.fullmatch(key):
            continue
        parts = [file[key] for file in files]
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            raise invalid(
                f"{key} has other shapes or dtypes in other files of {folder.name}; give the files of one model"
            )
        split = splits.get(key)
        # A misshapen tensor may lack the axis; it is named later, with all that differ.
        whole = len(parts) == 1 or split is None or split >= len(parts[0].shape)
        tensors[key] = parts[0] if whole else SplitTensor(parts, split)
    return tensors


def _check_count(folder: Path, config: ModelConfig, files: list[dict[str, StoredTensor]]) -> None:
    """Compare the rows of the vocabulary in the files with params.json: the plainest sign of a file too few."""
    name = "tok_embeddings.weight" if config.vision is None else "text_model.tok_embeddings.weight"
    part = files[0].get(name)
    vocab_size = config.decoder.vocab_size
    if part is None or not part.shape or part.shape[0] * len(files) == vocab_size:
        return
    if part.shape[0] and vocab_size % part.shape[0] == 0:
        expected = f"{vocab_size // part.shape[0]} of {part.shape[0]:,} rows each; download the others too"
    else:
        expected = "a vocab_size that goes with them; give the params.json of these weights"
    raise invalid(
        f"{folder.name} has {len(files)} weight files with {part.shape[0] * len(files):,} rows of the vocabulary, "
        f"params.json says vocab_size {vocab_size:,}; expected {expected}"
    )


def _weight_files(folder: Path) -> list[str]:
    """Return consolidated.pth, or consolidated.00.pth and its further parts without a gap."""
    found = sorted(path.name for path in folder.iterdir() if re.fullmatch(r"consolidated(\.\d\d)?\.pth", path.name))
    if found == ["consolidated.pth"]:
        return found
    expected = [f"consolidated.{number:02d}.pth" for number in range(len(found))]
    if not found or found != expected:
        shown = ", ".join(found) or "none"
        raise invalid(
            f"{folder.name} holds these weight files: {shown:.120}; expected consolidated.pth, or consolidated.00.pth "
            "and all that follow it"
        )
    return found
