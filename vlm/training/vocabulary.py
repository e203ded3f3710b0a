"""Words that a model gains as tokens, with rows of their own in its embedding and its head."""

import dataclasses
import json
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm.errors import VLMError
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM
from vlm.tokenizer import Tokenizer
from vlm.tokenizer_files import JSON_FILE
from vlm.tokenizer_files.json_reader import parse_json_file
from vlm.tokenizer_files.llama3 import IMAGE


def add_tokens(vlm: VLM, names: Sequence[str]) -> VLM:
    """Return a model with tokens more; its weights are those of `vlm`, which is used up.

    They take the ids after the vocabulary, and the image marker moves behind them, as its place in the embedding does.
    Their rows are the mean of all others. They are words, found wherever a text spells them.
    """
    model, tokenizer = vlm.model, vlm.tokenizer
    if tokenizer.vocab_size != model.config.decoder.vocab_size:
        raise _bad(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the head {model.config.decoder.vocab_size} rows; "
            "expected as many, so that new ones have a place"
        )
    known = tokenizer.special_ids.keys() | tokenizer.text_ids.keys()
    for name in names:
        if not name or name in known or list(names).count(name) > 1 or re.fullmatch(r"<\|.+\|>", name):
            raise _bad(
                f"model.added_tokens has {name!r:.40}, which is empty, there already, or spelt <|…|> as the special "
                "tokens that no text may become; give new words, such as <box>"
            )
    _grow(model, len(names))
    return VLM(model, _tokenizer_with(tokenizer, names))


def _tokenizer_with(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    root = json.loads(tokenizer.files("hf")[JSON_FILE])
    first = tokenizer.vocab_size
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    marker = [token for token in root["added_tokens"] if token["id"] == tokenizer.image_marker_id]
    if not marker and tokenizer.image_marker_id is not None:
        marker = [{"content": IMAGE, "special": True} | flags]
    kept = [token for token in root["added_tokens"] if token["id"] != tokenizer.image_marker_id]
    new = [{"content": name, "special": False} | flags for name in names]
    moved = [{**token, "id": first + place} for place, token in enumerate([*new, *marker])]
    root["added_tokens"] = kept + moved
    content = (json.dumps(root, ensure_ascii=False) + "\n").encode()
    marker_id = moved[-1]["id"] if marker else None
    return Tokenizer(**parse_json_file(content), image_marker_id=marker_id, json_file=content)


@torch.no_grad()
def _grow(model: VisionLanguageModel, num_new: int) -> None:
    """Put rows for new tokens between those of the vocabulary and those past it."""
    decoder = model.decoder
    num_old = decoder.config.vocab_size
    decoder.embedding.weight = _with_rows(decoder.embedding.weight, num_old, num_new)
    decoder.embedding.num_embeddings += num_new
    if decoder.head is not None:
        decoder.head.weight = _with_rows(decoder.head.weight, num_old, num_new)
        decoder.head.out_features += num_new
    decoder.config = dataclasses.replace(decoder.config, vocab_size=num_old + num_new)
    model.config = dataclasses.replace(model.config, decoder=decoder.config)


def _with_rows(weight: Tensor, place: int, num_new: int) -> nn.Parameter:
    new = weight[:place].mean(0, keepdim=True).expand(num_new, -1)
    return nn.Parameter(torch.cat([weight[:place], new, weight[place:]]))


def _bad(message: str) -> VLMError:
    return VLMError("invalid_request", message)
