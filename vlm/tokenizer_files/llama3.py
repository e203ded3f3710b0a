"""What every tokenizer of Llama 3 has in common, whatever file it came in: its pattern and its special tokens."""

from collections.abc import Mapping

from vlm.tokenizer_files.refusal import clip, invalid

# Source: llama-models, models/llama3/tokenizer.py (pat_str).
LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

BEGIN_OF_TEXT, END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
START_HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
END_OF_MESSAGE, END_OF_TURN = "<|eom_id|>", "<|eot_id|>"
PADDING = "<|finetune_right_pad_id|>"
IMAGE = "<|image|>"
REQUIRED_SPECIALS = (BEGIN_OF_TEXT, END_OF_TEXT, START_HEADER, END_HEADER, END_OF_TURN)

NUM_SPECIALS = 256
RESERVED = "<|reserved_special_token_{}|>"
_NAMED_SPECIALS = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    RESERVED.format(0),
    RESERVED.format(1),
    PADDING,
    "<|step_id|>",
    START_HEADER,
    END_HEADER,
    END_OF_MESSAGE,
    END_OF_TURN,
    "<|python_tag|>",
    IMAGE,
)
# Source: llama-models, models/llama3/tokenizer.py, in the order of their ids, which follow the last rank.
META_SPECIALS = (*_NAMED_SPECIALS, *(RESERVED.format(2 + i) for i in range(NUM_SPECIALS - len(_NAMED_SPECIALS))))


def meta_special_ids(num_ranks: int) -> dict[str, int]:
    """Return the ids of Meta's special tokens behind a vocabulary of `num_ranks` tokens."""
    return {name: num_ranks + index for index, name in enumerate(META_SPECIALS)}


def check_ids(ranks: Mapping[bytes, int], special_ids: Mapping[str, int], text_ids: Mapping[str, int]):
    """Refuse a vocabulary that cannot spell every byte, lacks what prompts are built of, or gives an id twice."""
    missing = [name for name in REQUIRED_SPECIALS if name not in special_ids]
    if missing:
        raise invalid(
            f"the tokenizer lacks the special tokens {', '.join(missing)}",
            "those of Llama 3, which prompts are built of",
            "take the tokenizer of a Llama 3 checkpoint",
        )
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise invalid(
            f"the tokenizer lacks {len(missing)} of the 256 single bytes, 0x{missing[0]:02x} first",
            "a byte-level vocabulary, which can spell any text",
        )
    seen: dict[int, bytes | str] = {}
    for tokens in (ranks, special_ids, text_ids):
        for token, token_id in tokens.items():
            if token_id in seen:
                raise invalid(
                    f"tokens {clip(seen[token_id])} and {clip(token)} have the same id {token_id}", "one token an id"
                )
            seen[token_id] = token


def find_marker_id(
    given: int | None, ranks: Mapping[bytes, int], special_ids: Mapping[str, int], text_ids: Mapping[str, int]
) -> int | None:
    """Return the image marker's id: the one given, else the one after Meta's 256 special tokens, else the file's own.

    None where a text model's fine-tune gave that id to a word of its own.
    """
    num_ranks = len(ranks)
    own = special_ids.get(IMAGE)
    taken = {*ranks.values(), *text_ids.values(), *special_ids.values()} - {own}
    if given is not None:
        if given in taken:
            raise invalid(
                f"the image marker's id {given} is that of another token",
                "one of its own",
                "check image_token_index in the checkpoint's config",
            )
        return given
    if own is not None and own != num_ranks + META_SPECIALS.index(IMAGE):
        return own
    return None if num_ranks + NUM_SPECIALS in taken else num_ranks + NUM_SPECIALS
