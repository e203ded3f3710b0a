"""Pre-training: every token of a document is learned from those before it, and from its images.

On text alone this is a language model's pre-training. On images with their captions, with the decoder frozen and the
encoder and adapter trained, it is how Llama 3.2 Vision was made (which parts are trained is the run's business).
"""

from collections.abc import Sequence

from torch import Tensor

from vlm.errors import VLMError
from vlm.model import VisionLanguageModel
from vlm.prompt import encode_completion
from vlm.tokenizer import Tokenizer
from vlm.training.data.batches import Example
from vlm.training.data.samples import Document, Sample
from vlm.training.objectives.objective import Objective, OpenImage, opened, wrong_kind
from vlm.training.rows import Row, predict, reply_log_probabilities


class NextToken(Objective):
    """Minimises the mean of -log p over all tokens of documents but the first, `<|end_of_text|>` among them."""

    rows_apart = True

    def __init__(self, tokenizer: Tokenizer, num_ids: int, max_length: int):
        if max_length < 2:
            raise VLMError(
                "invalid_request",
                f"max_length is {max_length}; expected at least 2, for each token is learned from the one before it",
            )
        self.tokenizer, self.num_ids, self.max_length = tokenizer, num_ids, max_length

    def rows(self, sample: Sample, open_image: OpenImage) -> list[Row]:
        """Return a document as one row; a text too long for one as several, which share no token."""
        if not isinstance(sample, Document):
            raise wrong_kind(sample, "documents")
        parts = [getattr(part, "text", part) for part in sample.parts]
        ids = [*encode_completion(self.tokenizer, parts).ids, self.tokenizer.eos_id]
        images = opened(sample.parts, open_image)
        if images or len(ids) <= self.max_length:
            return [self._row(ids, images)]
        # Each window begins with the id before it, so that every token is predicted once.
        starts = range(0, len(ids) - 1, self.max_length - 1)
        return [self._row(ids[start : start + self.max_length], []) for start in starts]

    def weight(self, examples: Sequence[Example]) -> int:
        return sum(row.num_targets for example in examples for row in example.rows)

    def loss(self, model: VisionLanguageModel, examples: Sequence[Example]) -> Tensor:
        rows = [row for example in examples for row in example.rows]
        return -reply_log_probabilities(model, rows, self.tokenizer.image_marker_id, self.pack).sum()

    def _row(self, ids: list[int], images: list) -> Row:
        return Row(ids=ids, targets=predict(ids, [True] * len(ids), self.num_ids), images=images)
