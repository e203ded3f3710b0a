"""Hugging Face's `tokenizer.json` and `tokenizer_config.json`, written for a vocabulary with Meta's special tokens.

What the `tokenizers` library makes of them differs from Meta's tokenizer, and ours, in three ways: it finds special
tokens in a text, it never cuts long runs, and it refuses lone surrogates.
"""

import json
from collections.abc import Mapping

from vlm.tokenizer_files import JSON_FILE
from vlm.tokenizer_files.byte_letters import letter_of_byte
from vlm.tokenizer_files.llama3 import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    IMAGE,
    LLAMA_PATTERN,
    META_SPECIALS,
    PADDING,
    RESERVED,
    meta_special_ids,
)
from vlm.tokenizer_files.merges import halvings

CONFIG_FILE = "tokenizer_config.json"


def write_json_files(ranks: Mapping[bytes, int]) -> dict[str, bytes]:
    """Return name and content of what transformers' `AutoTokenizer` reads, for ranks 0, 1, 2, ..."""
    return {JSON_FILE: _dump(_tokenizer(ranks), indent=None), CONFIG_FILE: _dump(_config(), indent=2)}


def _tokenizer(ranks: Mapping[bytes, int]) -> dict:
    table = letter_of_byte()
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    vocab = {token.decode("latin-1").translate(table): rank for token, rank in by_rank}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(len(ranks)),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": LLAMA_PATTERN}, "behavior": "Isolated", "invert": False},
                _byte_level(use_regex=False),
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [_byte_level(trim_offsets=False), _begin(meta_special_ids(len(ranks))[BEGIN_OF_TEXT])],
        },
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [f"{left} {right}" for left, right in halvings(vocab)],
        },
    }


def _added_tokens(num_ranks: int) -> list[dict]:
    """Return the special tokens in the order of their ids: Meta's 256, then the image marker.

    A name has one id here, and `<|image|>` is the marker's, as in Hugging Face's folders; the id that Meta lists it
    under becomes one more reserved token. Ids without a gap, for the `tokenizers` library counts them on its own.
    """
    num_reserved = sum(name.startswith(RESERVED.partition("{")[0]) for name in META_SPECIALS)
    names = [RESERVED.format(num_reserved) if name == IMAGE else name for name in META_SPECIALS]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": num_ranks + index, "content": name} | flags for index, name in enumerate([*names, IMAGE])]


def _byte_level(*, trim_offsets: bool = True, use_regex: bool = True) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": use_regex}


def _begin(token_id: int) -> dict:
    """Return what puts `<|begin_of_text|>` before each text."""
    single = [{"SpecialToken": {"id": BEGIN_OF_TEXT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": BEGIN_OF_TEXT, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + second,
        "special_tokens": {BEGIN_OF_TEXT: {"id": BEGIN_OF_TEXT, "ids": [token_id], "tokens": [BEGIN_OF_TEXT]}},
    }


def _config() -> dict:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _dump(settings: dict, *, indent: int | None) -> bytes:
    return (json.dumps(settings, ensure_ascii=False, indent=indent) + "\n").encode()
