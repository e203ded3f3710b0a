"""Meta's `tokenizer.model`: a line a token, base64 of its bytes and its rank; special tokens follow the last rank."""

import base64
import binascii
import re
from collections.abc import Mapping

from vlm.tokenizer_files import MODEL_FILE
from vlm.tokenizer_files.llama3 import IMAGE, LLAMA_PATTERN, NUM_SPECIALS, RESERVED, meta_special_ids
from vlm.tokenizer_files.refusal import clip, invalid


def parse_model_file(content: bytes) -> dict[bytes, int]:
    """Return the ranks of a `tokenizer.model`, having checked that they are 0, 1, 2, ... each once.

    Meta's reader skips lines it does not understand, which moves the id of every special token.
    """
    if b"\0" in content:
        raise invalid(
            f"{MODEL_FILE} is binary, perhaps of SentencePiece (Llama 2)", "Llama 3's text file of base64 ranks"
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            encoded, digits = fields
            token = base64.b64decode(encoded, validate=True)
            if not token or not re.fullmatch(rb"[0-9]{1,9}", digits):
                raise ValueError
        except (ValueError, binascii.Error):
            raise invalid(
                f"line {number} of {MODEL_FILE} is {clip(line)}", "base64 of a token, a space and its rank"
            ) from None
        if token in ranks:
            raise invalid(f"line {number} of {MODEL_FILE} has token {clip(token)} again", "every token once")
        ranks[token] = int(digits)
    if sorted(ranks.values()) != list(range(len(ranks))):
        first = next(rank for rank, found in enumerate([*sorted(ranks.values()), None]) if rank != found)
        raise invalid(f"{MODEL_FILE} has {len(ranks)} tokens, but rank {first} not once", "ranks 0, 1, 2, ...")
    return ranks


def write_model_file(ranks: Mapping[bytes, int]) -> bytes:
    """Return the `tokenizer.model` of ranks 0, 1, 2, ..."""
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in by_rank)


def why_no_model_file(
    ranks: Mapping[bytes, int],
    special_ids: Mapping[str, int],
    text_ids: Mapping[str, int],
    pattern: str,
    image_marker_id: int | None,
) -> str | None:
    """Tell what a `tokenizer.model` has no place for, for all that it holds are the ranks; None if nothing."""
    num_ranks = len(ranks)
    if pattern != LLAMA_PATTERN:
        return "the pattern is not Llama 3's"
    if text_ids:
        return f"{len(text_ids)} added words, {clip(next(iter(text_ids)))} first"
    if max(ranks.values()) != num_ranks - 1:
        return f"its {num_ranks} tokens have ids up to {max(ranks.values())}"
    expected = meta_special_ids(num_ranks)
    for name, token_id in special_ids.items():
        if name == IMAGE and token_id == image_marker_id:
            continue
        # Hugging Face's files count the reserved tokens in another way; nothing is ever built of these.
        if name.startswith(RESERVED.partition("{")[0]):
            fits = num_ranks <= token_id < num_ranks + NUM_SPECIALS
        else:
            fits = expected.get(name) == token_id
        if not fits:
            return f"special token {clip(name)} has id {token_id}"
    if image_marker_id != num_ranks + NUM_SPECIALS:
        return f"the image marker's id is {image_marker_id}, not {num_ranks + NUM_SPECIALS}"
    return None
