"""What a reply is worth: by a function of one's own, or by a model that is asked whether it is good."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vlm.errors import VLMError
from vlm.pipeline import VLM
from vlm.prompt import Text, Turn, encode_prompt
from vlm.tokenizer import Tokenizer
from vlm.training.objectives.rollouts import Attempt
from vlm.training.rows import Row, predict, reply_log_probabilities

QUESTION = "Is the last reply good? Answer Yes or No."
"""What a reward model is asked; it is fine-tuned on conversations that end with this and Yes or No."""

Reward = Callable[[Sequence[Attempt]], list[float]]
"""Returns a number for each reply, the larger the better."""


class FunctionReward:
    """A function `(prompt, reply, answer) -> float`, named as "module:function"."""

    def __init__(self, name: str):
        module, _, function = name.partition(":")
        try:
            self.function = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise VLMError(
                "invalid_request",
                f"objective.reward {name!r:.60} cannot be imported ({error!s:.90}); give module:function of a module "
                "that Python finds from here",
            ) from None
        if not callable(self.function):
            raise VLMError("invalid_request", f"objective.reward {name!r:.60} is no function; give module:function")
        self.name = name

    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        return [self._checked(self.function(one.prompt, one.reply, one.answer)) for one in attempts]

    def _checked(self, value: object) -> float:
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return float(value)
        raise VLMError(
            "invalid_request", f"objective.reward {self.name!r:.60} returned {value!r:.40}; expected a finite number"
        )


class ModelReward:
    """A model of the same tokenizer: how much likelier it finds Yes than No when asked about the reply."""

    def __init__(self, source: str, tokenizer: Tokenizer, device: torch.device):
        self.vlm = VLM.from_pretrained(source, device=device, dtype="float32")
        if _spelling(self.vlm.tokenizer) != _spelling(tokenizer):
            raise VLMError(
                "invalid_request",
                "the reward model has another tokenizer than the model under training; give one of the same family",
            )

    @torch.no_grad()
    def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        return [self._yes_over_no(attempt.row) for attempt in attempts]

    def _yes_over_no(self, row: Row) -> float:
        tokenizer = self.vlm.tokenizer
        ids = row.ids if row.ids[-1] == tokenizer.eot_id else [*row.ids, tokenizer.eot_id]
        ids = ids + encode_prompt(tokenizer, [Turn("user", (Text(QUESTION),))]).ids[1:]
        rows = []
        for word in ("Yes", "No"):
            asked = [*ids, *tokenizer.encode(word), tokenizer.eot_id]
            targets = predict(asked, [place >= len(ids) for place in range(len(asked))], tokenizer.vocab_size)
            rows.append(replace(row, ids=asked, targets=targets))
        yes, no = reply_log_probabilities(self.vlm.model, rows, tokenizer.image_marker_id).tolist()
        return yes - no


def _spelling(tokenizer: Tokenizer) -> tuple:
    """Return what two tokenizers must have in common for one to read what the other wrote."""
    ids = (tokenizer.bos_id, tokenizer.eot_id, tokenizer.image_marker_id)
    return tokenizer.ranks, tokenizer.text_ids, ids
