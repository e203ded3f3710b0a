"""Random weights of a text model as a GGUF file, for llama.cpp to read. Import only where `gguf` is installed."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from vlm.config import DecoderConfig

FORMATS = {"int8": gguf.GGMLQuantizationType.Q8_0, "int4": gguf.GGMLQuantizationType.Q4_0}
"""By our precisions. Embedding and head are Q8_0 in both, as our head is."""
_BLOCK = 32
"""Weights that share a scale of 16 bits, in either format."""


def write_random_gguf(path: Path, config: DecoderConfig, precision: str) -> None:
    """Write a text model at the bits of one of `FORMATS`, with random weights and no vocabulary."""
    weight_format = FORMATS[precision]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    matrix = _random_matrices(np.random.default_rng(0))
    table_format, kv_width = gguf.GGMLQuantizationType.Q8_0, config.num_kv_heads * config.head_dim
    tables = ["token_embd"] if config.tied else ["token_embd", "output"]
    matrices = dict.fromkeys(tables, (config.vocab_size, config.width, table_format))
    norms = ["output_norm"]
    for layer in range(config.num_layers):
        inner = {
            "attn_q": (config.width, config.width),
            "attn_k": (kv_width, config.width),
            "attn_v": (kv_width, config.width),
            "attn_output": (config.width, config.width),
            "ffn_gate": (config.mlp_dim, config.width),
            "ffn_up": (config.mlp_dim, config.width),
            "ffn_down": (config.width, config.mlp_dim),
        }
        matrices |= {f"blk.{layer}.{name}": (*shape, weight_format) for name, shape in inner.items()}
        norms += [f"blk.{layer}.attn_norm", f"blk.{layer}.ffn_norm"]
    for name, (rows, columns, own_format) in matrices.items():
        writer.add_tensor(f"{name}.weight", matrix(rows, columns, own_format), raw_dtype=own_format)
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.full(config.width, 0.5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random_matrices(rng: np.random.Generator) -> Callable[[int, int, gguf.GGMLQuantizationType], np.ndarray]:
    """Return a function that makes the bytes [rows, n] of a matrix: one random row, over and over."""

    def matrix(rows: int, columns: int, own_format: gguf.GGMLQuantizationType) -> np.ndarray:
        _, num_bytes = gguf.GGML_QUANT_SIZES[own_format]
        blocks = rng.integers(0, 256, (columns // _BLOCK, num_bytes), dtype=np.uint8)
        largest = 127 if own_format == gguf.GGMLQuantizationType.Q8_0 else 8
        blocks[:, :2] = np.frombuffer(np.float16(columns**-0.5 / largest).tobytes(), dtype=np.uint8)
        return np.broadcast_to(blocks.reshape(1, -1), (rows, blocks.size))

    return matrix
