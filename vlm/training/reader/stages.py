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


STAGES = (
    Stage(
        name="letters",
        diet=Diet(num_images=8, share_pages=1.0, num_questions=0),
        num_batches=700,
        rates=(1.0, 0.7),
        weights=Losses(answer=0.0, characters=1.0, links=0.0, partners=0.0, order=0.0, pointers=0.0),
    ),
    Stage(
        name="words",
        diet=Diet(num_images=16, share_pages=0.65, num_questions=0, difficulty=(0.0, 0.5), max_shrink=1.2),
        num_batches=900,
        rates=(0.7, 0.4),
        weights=Losses(answer=0.0, characters=1.0, links=0.4, partners=0.3, order=0.2, pointers=0.0),
    ),
    Stage(
        name="questions",
        diet=Diet(num_images=16, share_pages=0.2, num_questions=6, difficulty=(0.0, 0.8), max_shrink=1.2),
        num_batches=3000,
        rates=(0.4, 0.3),
        weights=Losses(answer=1.0, characters=1.0, links=0.5, partners=0.4, order=0.3, pointers=0.6),
    ),
    Stage(
        name="all sizes",
        max_tiles=4,
        diet=Diet(
            num_images=16, share_pages=0.1, num_questions=6, difficulty=(0.6, 1.0), share_sheets=0.3, max_shrink=1.3
        ),
        num_batches=1200,
        rates=(0.3, 0.0),
        weights=Losses(answer=1.0, characters=0.8, links=0.4, partners=0.4, order=0.3, pointers=0.6),
    ),
)
