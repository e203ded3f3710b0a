"""The tokenizer of a checkpoint folder: a file of its own, or the lists in a GGUF file."""

import json
import shutil
from pathlib import Path

from vlm.checkpoint import ollama
from vlm.checkpoint.files import find_file, invalid
from vlm.checkpoint.opened import format_of
from vlm.tokenizer import Tokenizer
from vlm.tokenizer_files import JSON_FILE, MODEL_FILE
from vlm.tokenizer_files.json_reader import parse_json_file
from vlm.tokenizer_files.llama3 import LLAMA_PATTERN

# llama.cpp's names of Llama 3's pattern. Source: llama.cpp src/llama-vocab.cpp.
_PATTERNS = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe")
# What says how to use a tokenizer, beside the file of it.
_USE_FILES = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json")
_LISTS = {"tokens": str, "token_type": int, "merges": str}
# Kinds of tokens. Source: gguf constants.py, TokenType.
_CONTROL, _USER_DEFINED = 3, 4


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint folder.

    Raises VLMError where there is none or it is not understood.
    """
    has_file = any((folder / name).is_file() for name in (JSON_FILE, MODEL_FILE))
    if has_file or format_of(folder)[0] is not ollama:
        return Tokenizer.from_folder(folder)
    found = {key.removeprefix("tokenizer.ggml."): value for key, value in ollama.read_settings(folder).items()}
    if found.get("model") != "gpt2" or found.get("pre") not in _PATTERNS:
        raise invalid(
            f"{folder.name} has a tokenizer of kind {found.get('model')!r:.40}, {found.get('pre')!r:.40}; expected "
            "Llama 3's: put its tokenizer.json or tokenizer.model there"
        )
    found.setdefault("merges", [])
    for name, kind in _LISTS.items():
        if not isinstance(found.get(name), list) or not all(type(item) is kind for item in found[name]):
            raise invalid(f"{folder.name} has no list of its tokenizer's {name}; put its tokenizer.json there")
    return Tokenizer(**parse_json_file(_json_file(found["tokens"], found["token_type"], found["merges"])))


def copy_use_files(source: Path, target: Path) -> None:
    """Copy what a Hugging Face folder says of its tokenizer's use, the chat template above all, into another."""
    for name in _USE_FILES:
        if (source / name).exists():
            shutil.copyfile(find_file(source, name), target / name)


def _json_file(tokens: list[str], kinds: list[int], merges: list[str]) -> bytes:
    """Return what `tokenizer.json` would be, for the one reader that knows what is legal."""
    numbered = list(zip(range(len(tokens)), tokens, kinds, strict=False))
    added = [
        {"id": number, "content": token, "special": kind == _CONTROL}
        for number, token, kind in numbered
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    vocab = {token: number for number, token, kind in numbered if kind not in (_CONTROL, _USER_DEFINED)}
    split = {"type": "Split", "pattern": {"Regex": LLAMA_PATTERN}, "behavior": "Isolated"}
    settings = {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": True},
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]},
    }
    return json.dumps(settings).encode()
