"""Direct preference optimisation: of two replies the chosen one is to become likelier than the rejected one.

Source: Rafailov et al., arXiv 2305.18290, equation 7; the reference's log-probabilities are computed once, before
training begins, or left out.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional

from vlm.model import VisionLanguageModel
from vlm.prompt import Text, Turn
from vlm.tokenizer import Tokenizer
from vlm.training.data.batches import Example
from vlm.training.data.samples import Preference, Sample
from vlm.training.objectives.objective import Objective, OpenImage, opened, wrong_kind
from vlm.training.objectives.replies import conversation_ids
from vlm.training.rows import Row, predict, reply_log_probabilities


class DirectPreference(Objective):
    """Minimises the mean of -log σ(β · (margin - reference margin)), a margin being log p(chosen) - log p(rejected)."""

    def __init__(self, tokenizer: Tokenizer, num_ids: int, *, beta: float = 0.1):
        self.tokenizer, self.num_ids, self.beta = tokenizer, num_ids, beta
        self.reference: Mapping[tuple[int, int], float] | None = None
        """The reference's margin of each example, by its place in the data; None leaves the reference out."""

    def rows(self, sample: Sample, open_image: OpenImage) -> list[Row]:
        """Return the chosen reply's row and the rejected one's; they share their images."""
        if not isinstance(sample, Preference):
            raise wrong_kind(sample, "preferences, with chosen and rejected")
        images = opened(sample.turns, open_image)
        rows = []
        for reply in (sample.chosen, sample.rejected):
            ids, _ = conversation_ids(self.tokenizer, (*sample.turns, Turn("assistant", (Text(reply),))))
            # Turns before are the same in both and cancel out; only the last is counted.
            num_reply = len(self.tokenizer.encode(reply)) + 1
            learned = [place >= len(ids) - num_reply for place in range(len(ids))]
            rows.append(Row(ids=ids, targets=predict(ids, learned, self.num_ids), images=images))
        return rows

    def weight(self, examples: Sequence[Example]) -> int:
        return len(examples)

    def loss(self, model: VisionLanguageModel, examples: Sequence[Example]) -> Tensor:
        margins = self.margins(model, examples)
        if self.reference is not None:
            margins = margins - margins.new_tensor([self.reference[example.place] for example in examples])
        return -functional.logsigmoid(self.beta * margins).sum()

    def margins(self, model: VisionLanguageModel, examples: Sequence[Example]) -> Tensor:
        """Return log p(chosen) - log p(rejected) of each example [b]."""
        rows = [row for example in examples for row in example.rows]
        totals = reply_log_probabilities(model, rows, self.tokenizer.image_marker_id, self.pack)
        chosen, rejected = totals.unflatten(0, (-1, 2)).unbind(1)
        return chosen - rejected
