"""What the loop asks of an objective.

Losses are sums. The loop divides them by the weight of the whole step, so that small batches one after the other give
the gradient of the large one.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from vision_encoder.preprocess import ProcessedImage
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel
from vlm.prompt import Image, Text, Turn
from vlm.training.data.batches import Example
from vlm.training.data.samples import Sample
from vlm.training.rows import Row

OpenImage = Callable[[object], ProcessedImage]


class Objective(Protocol):
    """One way to learn."""

    def rows(self, sample: Sample, open_image: OpenImage) -> list[Row]:
        """Return the rows of a sample. Raises: VLMError for a sample of another kind."""

    def weight(self, examples: Sequence[Example]) -> int:
        """Return how much `examples` count: the number of terms in their loss."""

    def loss(self, model: VisionLanguageModel, examples: Sequence[Example]) -> Tensor:
        """Return the sum of the losses of `examples`; 0 where there is nothing to learn."""


def opened(turns_or_parts: Sequence[Turn] | Sequence[Text | Image], open_image: OpenImage) -> list[ProcessedImage]:
    """Return the images of turns or of parts in their order, opened."""
    parts = [part for each in turns_or_parts for part in (each.parts if isinstance(each, Turn) else (each,))]
    return [open_image(part.image) for part in parts if isinstance(part, Image)]


def wrong_kind(sample: Sample, expected: str) -> VLMError:
    """Return the error for a sample that an objective cannot use."""
    return VLMError(
        "invalid_request", f"the sample is a {type(sample).__name__.lower()}; this objective learns from {expected}"
    )
