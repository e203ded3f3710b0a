"""Supervised fine-tuning: the assistant's turns are learned, everything else is only read."""

from collections.abc import Sequence

from torch import Tensor

from vlm.model import VisionLanguageModel
from vlm.prompt import Turn, encode_prompt
from vlm.tokenizer import Tokenizer
from vlm.training.data.batches import Example
from vlm.training.data.samples import Conversation, Sample
from vlm.training.objectives.objective import Objective, OpenImage, opened, wrong_kind
from vlm.training.rows import Row, predict, reply_log_probabilities


class SupervisedReplies(Objective):
    """Minimises the mean of -log p over the tokens of all replies, each reply's end of turn among them."""

    def __init__(self, tokenizer: Tokenizer, num_ids: int):
        self.tokenizer, self.num_ids = tokenizer, num_ids

    def rows(self, sample: Sample, open_image: OpenImage) -> list[Row]:
        if not isinstance(sample, Conversation):
            raise wrong_kind(sample, "conversations")
        ids, learned = conversation_ids(self.tokenizer, sample.turns)
        return [Row(ids=ids, targets=predict(ids, learned, self.num_ids), images=opened(sample.turns, open_image))]

    def weight(self, examples: Sequence[Example]) -> int:
        return sum(row.num_targets for example in examples for row in example.rows)

    def loss(self, model: VisionLanguageModel, examples: Sequence[Example]) -> Tensor:
        rows = [row for example in examples for row in example.rows]
        return -reply_log_probabilities(model, rows, self.tokenizer.image_marker_id, self.pack).sum()


def conversation_ids(tokenizer: Tokenizer, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
    """Return the ids of a conversation as `encode_prompt` builds them, and which of them a model is to write.

    These are the texts of the assistant and the end of its turns; no header, and no image.
    """
    header = len(encode_prompt(tokenizer, ()).ids) - 1
    ids, learned = [tokenizer.bos_id], [False]
    for turn in turns:
        own = encode_prompt(tokenizer, [turn], add_generation_prompt=False).ids[1:]
        is_reply = turn.role == "assistant"
        ids += own
        learned += [is_reply and place >= header for place in range(len(own))]
    return ids, learned
