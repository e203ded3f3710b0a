"""Hugging Face's `tokenizer.json`, read where it describes a byte-level BPE."""

import json
import re

from vlm.tokenizer_files import JSON_FILE
from vlm.tokenizer_files.byte_letters import byte_of_letter
from vlm.tokenizer_files.llama3 import LLAMA_PATTERN
from vlm.tokenizer_files.merges import check_merges
from vlm.tokenizer_files.refusal import clip, describe, invalid, unsupported

# Source: tokenizers, src/pre_tokenizers/byte_level.rs, what `ByteLevel` with `use_regex` splits by.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def parse_json_file(content: bytes) -> dict:
    """Return the arguments of `Tokenizer` that a `tokenizer.json` of a byte-level BPE holds."""
    try:
        root = json.loads(content, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        found = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise invalid(
            f"{JSON_FILE} cannot be read ({clip(found)})", "JSON", "take it again from where it came from"
        ) from None
    model = _expect(root, "model", dict)
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind != "BPE":
        raise unsupported(f"model type {clip(kind)}", "BPE over bytes")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise unsupported(f"{name} {clip(model[name])}", "none")
    normalizer = root.get("normalizer")
    if normalizer not in (None, {"type": "Sequence", "normalizers": []}):
        raise unsupported("a normalizer, which changes the text", "none")

    special_ids, text_ids = _parse_added_tokens(root.get("added_tokens") or [])
    added_ids = special_ids | text_ids
    vocab = {token: index for token, index in _expect(model, "vocab", dict).items() if added_ids.get(token) != index}
    ranks = _parse_vocab(vocab)
    check_merges(vocab, _expect(model, "merges", list), ignore_merges=bool(model.get("ignore_merges")))
    pattern = _parse_pre_tokenizer(root.get("pre_tokenizer"))
    return {"ranks": ranks, "special_ids": special_ids, "pattern": pattern, "text_ids": text_ids}


_LEGAL_TEXT = re.compile(r"[^\ud800-\udfff]+")


def _parse_added_tokens(tokens: object) -> tuple[dict[str, int], dict[str, int]]:
    """Return the ids of added special tokens and of added words.

    What is spelt `<|...|>` is special even where the file says otherwise, for a user's text must never become it.
    """
    special_ids: dict[str, int] = {}
    text_ids: dict[str, int] = {}
    for index, token in enumerate(tokens if isinstance(tokens, list) else [tokens]):
        content, token_id = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(content, str) or not _LEGAL_TEXT.fullmatch(content) or not _is_id(token_id):
            raise unsupported(f"added_tokens[{index}] without a legal content and id", "both of every added token")
        if content in special_ids or content in text_ids:
            raise unsupported(f"added token {clip(content)} twice", "every added token once")
        if token.get("special") or re.fullmatch(r"<\|.+\|>", content):
            special_ids[content] = token_id
            continue
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise unsupported(f"{flag} of added word {clip(content)}", "added words that match anywhere")
        text_ids[content] = token_id
    return special_ids, text_ids


def _parse_vocab(vocab: dict[str, object]) -> dict[bytes, int]:
    """Return bytes and id of every token of a vocabulary."""
    table = byte_of_letter()
    ranks = {}
    for spelling, token_id in vocab.items():
        if not _is_id(token_id):
            raise unsupported(f"id {describe(token_id)} of token {clip(spelling)}", "whole numbers from 0")
        try:
            ranks[spelling.translate(table).encode("latin-1")] = token_id
        except UnicodeEncodeError:
            raise unsupported(f"token {clip(spelling)}", "tokens spelt in GPT-2's 256 letters for bytes") from None
    return ranks


def _parse_pre_tokenizer(pre_tokenizer: object) -> str:
    """Return the pattern that text is split by: of a `Split` before a `ByteLevel`, or of a `ByteLevel` alone."""
    expected = "one Split by Regex, isolated, then ByteLevel without a prefix space"
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer.get("pretokenizers")
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else []
    if kinds not in (["Split", "ByteLevel"], ["ByteLevel"]):
        raise unsupported(f"pre_tokenizer {clip(' '.join(map(str, kinds)))}", expected)
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space") or byte_level.get("use_regex", True) != (len(steps) == 1):
        raise unsupported("a ByteLevel that adds a space or splits again", expected)
    if len(steps) == 1:
        return GPT2_PATTERN
    split = steps[0]
    pattern = split["pattern"].get("Regex") if isinstance(split.get("pattern"), dict) else None
    if not isinstance(pattern, str) or not pattern or split.get("behavior") != "Isolated" or split.get("invert"):
        raise unsupported(f"a Split by {clip(split.get('pattern'))}", expected)
    if pattern in (LLAMA_PATTERN, GPT2_PATTERN):
        return pattern
    # "Isolated" keeps what stands between the matches; tiktoken would drop it.
    return rf"{pattern}|(?:(?!{pattern})[\s\S])+"


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("the same key twice in one object")
    return entries


def _expect(section: object, name: str, kind: type):
    value = section.get(name) if isinstance(section, dict) else None
    if not isinstance(value, kind):
        raise unsupported(f"no {name!r}", "BPE over bytes")
    return value
