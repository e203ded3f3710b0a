"""Conversations of every mix, and ways to make a model write what a test wants."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from tests.image_files import noise_picture
from vlm import VLM, VLMError

HEADER, END_OF_TURN, META_IMAGE = 262, 265, 267
FOUR_TILES, WIDE, TALL, SMALL = map(noise_picture, [(56, 56), (20, 50), (50, 20), (9, 9)], range(4))


def user(*parts) -> list[dict]:
    """Return a conversation of one turn; a part is a text or an image."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return [{"role": "user", "content": content}]


def refusal(call: Callable, *args, **kwargs) -> VLMError:
    """Return the error by which a call is refused."""
    with pytest.raises(VLMError) as caught:
        call(*args, **kwargs)
    return caught.value


MIXED = [
    user("text alone"),
    user(FOUR_TILES, "what?"),
    user("look: ", WIDE, " and ", TALL, " and?"),
    user("?"),
    user("a much longer text before the image " * 3, SMALL),
    user(SMALL, SMALL, "two at once"),
    [*user("hi"), {"role": "assistant", "content": "yes"}, *user(TALL, "é€")],
    user("at the end ", FOUR_TILES),
]
"""No image, one, two together and apart; 1 to 4 tiles; the image first, in the middle and last; unequal lengths."""


@contextmanager
def changed_logits(vlm: VLM, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, `change(logits)` is what the decoder gives."""
    decoder = vlm.model.decoder
    given = decoder.logits
    decoder.logits = lambda hidden: change(given(hidden))
    try:
        yield
    finally:
        decoder.logits = given


def forced(steps: list[int]) -> Callable[[Tensor], Tensor]:
    """Return a change of logits that makes every row write `steps`, one a step."""
    upcoming = iter(steps)

    def change(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, next(upcoming)] += 1e6
        return logits

    return change
