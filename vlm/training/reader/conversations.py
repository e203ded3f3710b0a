"""Questions as the decoder is taught them: whole conversations, in groups of similar length."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlm.prompt import Image, Text, Turn, encode_prompt
from vlm.tokenizer import Tokenizer
from vlm.training.reader.targets import IGNORED, NUM_POINTERS


class QuestionBatch(NamedTuple):
    """Questions of about equal length, padded on the right."""

    ids: Tensor
    """[b, s] int64"""
    labels: Tensor
    """[b, s] int64: the id that each position should predict, IGNORED outside the reply."""
    image_index: Tensor
    """[b] int64: the picture asked about."""
    pointers: Tensor
    """[b, NUM_POINTERS, s] int64: which of `places` each position should look at; see `targets.Pointers`."""
    places: Tensor
    """[n, p] bool"""
    kinds: list[str]
    """What each asks for."""
    first_seeing: int
    """The position of the image marker, the same in all rows: earlier ones see no picture."""


def question_groups(rows: list[tuple], marker_id: int) -> list[QuestionBatch]:
    """Return batches of questions of similar length.

    rows: (which picture, ids, labels, pointers, kind) of each.
    """
    return [_group(group, marker_id) for group in _by_length(rows)]


def conversation(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt about a picture, and those of its reply."""
    prompt = encode_prompt(tokenizer, [Turn("user", (Image(None), Text(question)))]).ids
    return prompt, [*tokenizer.encode(answer), tokenizer.eot_id]


def with_labels(prompt: list[int], reply: list[int]) -> tuple[list[int], list[int]]:
    """Return the ids of a whole conversation but for the last, and what each position should predict."""
    return prompt + reply[:-1], [IGNORED] * (len(prompt) - 1) + reply


def _by_length(rows: list[tuple]) -> list[list[tuple]]:
    """Return rows in one or two groups of such lengths that the least is padded.

    More groups would pad less, but a model goes through each of them anew.
    """
    if not rows:
        return []
    rows = sorted(rows, key=lambda row: len(row[1]))
    lengths = [len(row[1]) for row in rows]
    padded = [split * lengths[split - 1] + (len(rows) - split) * lengths[-1] for split in range(1, len(rows) + 1)]
    # The last of equals, for one group is better than two.
    split = len(padded) - padded[::-1].index(min(padded))
    return [group for group in (rows[:split], rows[split:]) if group]


def _group(rows: list[tuple], marker_id: int) -> QuestionBatch:
    longest = max(len(ids) for _, ids, *_ in rows)
    numbers = np.zeros((len(rows), NUM_POINTERS, longest), dtype=np.int64)
    places = [rows[0][3].places[:1]]
    num_places = 1
    for index, (*_, pointers, _) in enumerate(rows):
        # The empty place of all conversations is one.
        own = np.where(pointers.numbers > 0, pointers.numbers + num_places - 1, 0)
        numbers[index, :, : own.shape[1]] = own
        places.append(pointers.places[1:])
        num_places += len(places[-1])
    return QuestionBatch(
        torch.tensor([ids + [0] * (longest - len(ids)) for _, ids, *_ in rows]),
        torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, _, labels, *_ in rows]),
        torch.tensor([image_index for image_index, *_ in rows]),
        torch.from_numpy(numbers),
        torch.from_numpy(np.concatenate(places)),
        [kind for *_, kind in rows],
        rows[0][1].index(marker_id),
    )
