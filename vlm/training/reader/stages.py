"""The stages of the training: letters first, then words, then questions about charts, then charts of all sizes."""

from dataclasses import dataclass

from vlm.training.reader.data import Diet
from vlm.training.reader.model import Losses


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training: what is fed, how long, and how fast is learned."""

    name: str
    max_tiles: int = 1
    diet: Diet
    num_batches: int
    rates: tuple[float, float]
    """Share of the peak learning rates at the first and at the last batch, a straight line between."""
    weights: Losses
    """Of the losses, in their sum."""


_ALL = Losses(answer=1.0, characters=1.0, links=0.4, partners=0.3, order=0.3, beginning=0.3, pointers=0.6)

# As long as they were in a run of an hour, which was cut short in the third: questions want some thousands of batches.
STAGES = (
    Stage(
        name="letters",
        diet=Diet(num_images=8, share_pages=1.0, num_questions=0),
        num_batches=262,
        rates=(1.0, 0.9),
        weights=Losses(answer=0.0, characters=1.0, links=0.0, partners=0.0, order=0.0, beginning=0.0, pointers=0.0),
    ),
    Stage(
        name="words",
        diet=Diet(num_images=8, share_pages=0.5, num_questions=0, difficulty=(0.0, 0.7), max_shrink=1.2),
        num_batches=280,
        rates=(0.7, 0.4),
        weights=Losses(answer=0.0, characters=1.0, links=0.4, partners=0.3, order=0.2, beginning=0.2, pointers=0.0),
    ),
    Stage(
        name="questions",
        diet=Diet(num_images=8, share_pages=0.15, num_questions=6, difficulty=(0.0, 0.9), max_shrink=1.2),
        num_batches=1250,
        rates=(0.25, 0.12),
        weights=_ALL,
    ),
    Stage(
        name="all sizes",
        max_tiles=4,
        diet=Diet(
            num_images=8, share_pages=0.1, num_questions=6, difficulty=(0.8, 1.0), share_sheets=0.4, max_shrink=1.3
        ),
        num_batches=150,
        rates=(0.12, 0.0),
        weights=_ALL,
    ),
)
