"""Checkpoints on disk and on the Hub, in Hugging Face's and in Meta's layout.

Names that other people's checkpoints use appear in this package only.
"""

from vlm.checkpoint.checksums import verify_checksums, write_checksums
from vlm.checkpoint.conversion import convert_to_hf
from vlm.checkpoint.empty import empty_model
from vlm.checkpoint.hub import resolve
from vlm.checkpoint.loading import load_model, read_config, stays_quantized, stored_precision
from vlm.checkpoint.saving import save_model
from vlm.checkpoint.staging import staged
from vlm.checkpoint.tokenizers import copy_use_files, read_tokenizer

__all__ = [
    "convert_to_hf",
    "copy_use_files",
    "empty_model",
    "load_model",
    "read_config",
    "read_tokenizer",
    "resolve",
    "save_model",
    "staged",
    "stays_quantized",
    "stored_precision",
    "verify_checksums",
    "write_checksums",
]
