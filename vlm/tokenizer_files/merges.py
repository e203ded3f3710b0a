"""The merges of a `tokenizer.json`, beside the rule of tiktoken: join the two neighbours that make the lowest id.

Where every way to halve every token is a merge, and merges stand in the order of the ids they make, the two are the
same. Merges never cross a token's ends on the way to it, so it comes about alike in every text, and of its halvings
only one is ever met: which of them stands first does not matter.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

from vlm.tokenizer_files.refusal import clip, unsupported

logger = logging.getLogger(__name__)


def halvings(vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield every way to halve every token into two tokens, in the order of the ids of whole, left and right.

    Source: transformers, convert_slow_tokenizer.py, TikTokenConverter.extract_vocab_merges_from_model.
    """
    for token in sorted(vocab, key=vocab.__getitem__):
        yield from sorted(_halve(token, vocab), key=lambda halves: (vocab[halves[0]], vocab[halves[1]]))


def _halve(token: str, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    return [(left, right) for left, right in cuts if left in vocab and right in vocab]


def check_merges(vocab: Mapping[str, int], merges: Sequence, *, ignore_merges: bool):
    """Refuse merges that do not give what tiktoken does.

    When they are not all halvings, each token is taken apart by the ids below its own: when two parts are left that
    are a merge, the token comes about as in training.
    """
    pairs = _parse_merges(vocab, merges)
    if ignore_merges and sum(len(_halve(token, vocab)) for token in vocab) == len(pairs):
        return
    num_whole = 0
    for token, token_id in vocab.items():
        parts = tuple(_merge_below(token, vocab, token_id))
        num_whole += len(parts) > 2
        if len(parts) == 2 and parts not in pairs:
            raise unsupported(f"token {clip(token)} without the merge that makes it", "a merge for every token")
    if num_whole and not ignore_merges:
        logger.warning(
            "tokenizer.json does not set ignore_merges, and %d of its tokens come about by no merges; they are used "
            "wherever a word is spelt like one, as Meta's tokenizer does and the `tokenizers` library would not",
            num_whole,
        )


def _parse_merges(vocab: Mapping[str, int], merges: Sequence) -> set[tuple[str, str]]:
    """Return the merges, having checked that each makes a token and that they stand in the order of its id."""
    pairs: set[tuple[str, str]] = set()
    last_id = -1
    for index, merge in enumerate(merges):
        try:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            token_id = vocab[left + right]
            makes_token = left in vocab and right in vocab
        except (KeyError, TypeError, ValueError):
            makes_token = False
        if not makes_token:
            raise unsupported(f"merges[{index}] {clip(merge)}", "two tokens that make a third")
        if token_id < last_id:
            raise unsupported(f"merges[{index}] out of the order of ids", "merges in the order of the ids they make")
        last_id = token_id
        pairs.add((left, right))
    return pairs


def _merge_below(token: str, vocab: Mapping[str, int], limit: int) -> list[str]:
    """Return the parts of a token after all merges that make an id below `limit`."""
    parts = list(token)
    while len(parts) > 1:
        made = [vocab.get(left + right, limit) for left, right in itertools.pairwise(parts)]
        lowest = min(made)
        if lowest >= limit:
            break
        index = made.index(lowest)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts
