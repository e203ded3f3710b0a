"""What the loop asks of an objective.

Losses are sums. The loop divides them by the weight of the whole step, so that small batches one after the other give
the gradient of the large one.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from vision_encoder.preprocess import ProcessedImage
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel
from vlm.prompt import Image, Text, Turn
from vlm.training.data.batches import Example
from vlm.training.data.samples import Sample
from vlm.training.rows import Row

OpenImage = Callable[[object], ProcessedImage]


class Objective:
    """One way to learn."""

    pack: int | None = None
    """See `rows.hidden_states`."""

    rows_apart: bool = False
    """Whether the rows of an example may be computed one without the other, as windows of a text may."""

    def rows(self, sample: Sample, open_image: OpenImage) -> list[Row]:
        """Return the rows of a sample. Raises: VLMError for a sample of another kind."""
        raise NotImplementedError

    def weight(self, examples: Sequence[Example]) -> int:
        """Return how much `examples` count: the number of terms in their loss."""
        raise NotImplementedError

    def loss(self, model: VisionLanguageModel, examples: Sequence[Example]) -> Tensor:
        """Return the sum of the losses of `examples`; 0 where there is nothing to learn."""
        raise NotImplementedError

    # For those that learn from what the model itself says.

    updates: int = 1
    """Optimizer steps on what was collected for one step of the run."""

    weights: Mapping[str, nn.Parameter] = {}
    """What is trained beside the model, and not exported with it."""

    figures: Mapping[str, float] = {}
    """What the log says of the last step beside its loss."""

    def collect(self, model: VisionLanguageModel, examples: Sequence[Example], size: int) -> Sequence[Example]:
        """Return what a step learns from, given its samples; what is computed for that, `size` at a time."""
        return examples

    def uncounted(self, example: Example) -> Example:
        """Return `example`, which has no targets, as `loss` takes what was collected."""
        return example


def opened(turns_or_parts: Sequence[Turn] | Sequence[Text | Image], open_image: OpenImage) -> list[ProcessedImage]:
    """Return the images of turns or of parts in their order, opened."""
    parts = [part for each in turns_or_parts for part in (each.parts if isinstance(each, Turn) else (each,))]
    return [open_image(part.image) for part in parts if isinstance(part, Image)]


def wrong_kind(sample: Sample, expected: str) -> VLMError:
    """Return the error for a sample that an objective cannot use."""
    return VLMError(
        "invalid_request", f"the sample is a {type(sample).__name__.lower()}; this objective learns from {expected}"
    )
