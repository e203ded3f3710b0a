"""Hugging Face weights in Meta's names and layout, for the oracle only; our own key tables are tested against it.

Source: llama-models module names; transformers 4.45, convert_mllama_weights_to_hf.py, read backwards.
"""

import re

from einops import rearrange
from torch import Tensor
from transformers import MllamaConfig

from .weights import POSITION_TABLES, State, cells_from_table

# The one rule a name falls under; \1 and \2 are carried over. Layer numbers of the decoder are changed afterwards.
_ENCODER = "vision_model.vision_encoder"
_VISION = r"model\.vision_model"
_NAMES = {
    rf"{_VISION}\.patch_embedding\.weight": rf"{_ENCODER}.conv1._linear.weight",
    rf"{_VISION}\.class_embedding": rf"{_ENCODER}.class_embedding",
    rf"{_VISION}\.gated_positional_embedding\.embedding": rf"{_ENCODER}.positional_embedding",
    rf"{_VISION}\.gated_positional_embedding\.tile_embedding\.weight": rf"{_ENCODER}.gated_positional_embedding",
    rf"{_VISION}\.gated_positional_embedding\.gate": rf"{_ENCODER}.gated_positional_embedding_gate",
    rf"{_VISION}\.(pre|post)_tile_positional_embedding\.embedding\.weight": rf"{_ENCODER}.\1_tile_pos_embed.embedding",
    rf"{_VISION}\.(pre|post)_tile_positional_embedding\.gate": rf"{_ENCODER}.\1_tile_pos_embed.gate",
    rf"{_VISION}\.layernorm_(pre|post)\.(\w+)": rf"{_ENCODER}.ln_\1.\2",
    rf"{_VISION}\.((?:global_)?transformer)\.layers\.(.*)": rf"{_ENCODER}.\1.resblocks.\2",
    r"model\.multi_modal_projector\.(\w+)": r"vision_model.vision_projection.\1",
    r"model\.language_model\.norm\.weight": r"text_model.norm.weight",
    r"lm_head\.weight": r"text_model.output.weight",
}
_IN_VISION_LAYER = {
    "self_attn.q_proj": "attn.wq",
    "self_attn.k_proj": "attn.wk",
    "self_attn.v_proj": "attn.wv",
    "self_attn.o_proj": "attn.wo",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
}
_IN_TEXT_LAYER = {
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "cross_attn.q_proj.weight": "attention.wq.weight",
    "cross_attn.k_proj.weight": "attention.wk.weight",
    "cross_attn.v_proj.weight": "attention.wv.weight",
    "cross_attn.o_proj.weight": "attention.wo.weight",
    "cross_attn.q_norm.weight": "attention.q_norm.weight",
    "cross_attn.k_norm.weight": "attention.k_norm.weight",
    "cross_attn_attn_gate": "gate_attn",
    "cross_attn_mlp_gate": "gate_ffwd",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}


def fusion_schedule(config: MllamaConfig) -> list[int]:
    """The self-attention layers, counted alone, before which a cross-attention layer stands."""
    return [place - earlier for earlier, place in enumerate(sorted(config.text_config.cross_attention_layers))]


def meta_state(config: MllamaConfig, state: State) -> State:
    """Turn Hugging Face weights into the state of Meta's `CrossAttentionTransformer`.

    Raises ValueError where the position tables have no Meta form.
    """
    converted: State = {}
    for name, weight in state.items():
        if name == "model.language_model.embed_tokens.weight":
            # The marker's 8 rows are a table of their own in Meta's layout.
            vocab_size = config.text_config.vocab_size
            converted["text_model.tok_embeddings.weight"] = weight[:vocab_size]
            converted["text_model.learnable_embedding.weight"] = weight[vocab_size:]
        else:
            converted[_meta_name(config, name)] = _meta_layout(config, name, weight)
    return converted


def _meta_name(config: MllamaConfig, name: str) -> str:
    """Meta's name of one Hugging Face weight."""
    if match := re.fullmatch(r"model\.language_model\.layers\.(\d+)\.(.*)", name):
        place, cross = int(match[1]), sorted(config.text_config.cross_attention_layers)
        if place in cross:
            return f"text_model.cross_attention_layers.{cross.index(place)}.{_IN_TEXT_LAYER[match[2]]}"
        return f"text_model.layers.{place - sum(c < place for c in cross)}.{_IN_TEXT_LAYER[match[2]]}"
    for pattern, replacement in _NAMES.items():
        if match := re.fullmatch(pattern, name):
            meta_name = match.expand(replacement)
            for theirs, metas in _IN_VISION_LAYER.items():
                meta_name = meta_name.replace(f".{theirs}.", f".{metas}.")
            return meta_name
    raise ValueError(f"no Meta name for {name}")


def _meta_layout(config: MllamaConfig, name: str, weight: Tensor) -> Tensor:
    """Meta's layout of one weight: flat patches, cell tables, interleaved rotary pairs (cross-attention has none)."""
    vision, text = config.vision_config, config.text_config
    if name in POSITION_TABLES:
        grids = [(rows, cols) for rows, cols in vision.supported_aspect_ratios]
        cells = cells_from_table(weight, grids, vision.max_num_tiles)
        return rearrange(cells, "rows cols (p v) -> rows cols p v", v=vision.hidden_size)
    if name.endswith("patch_embedding.weight"):
        return rearrange(weight, "v c y x -> v (c y x)")
    if "language_model" in name and name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
        heads = text.num_attention_heads if "q_proj" in name else text.num_key_value_heads
        return rearrange(weight, "(heads half pair) d -> (heads pair half) d", heads=heads, half=2)
    return weight
