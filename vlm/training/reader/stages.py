"""The stages of the training: letters first, then words, then questions about charts, then charts of all sizes."""

from dataclasses import dataclass

from vlm.training.reader.data import Diet
from vlm.training.reader.model import Losses


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training: what is fed, how long, and how fast is learned."""

    name: str
    tile_size: int
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
        tile_size=224,
        diet=Diet(num_images=8, share_pages=1.0, num_questions=0),
        num_batches=700,
        rates=(1.0, 0.7),
        weights=Losses(0.0, 1.0, 0.0, 0.0, 0.0),
    ),
    Stage(
        name="words",
        tile_size=224,
        diet=Diet(num_images=8, share_pages=0.7, num_questions=0, difficulty=(0.0, 0.5)),
        num_batches=600,
        rates=(0.7, 0.4),
        weights=Losses(0.0, 1.0, 0.4, 0.2, 0.0),
    ),
    Stage(
        name="questions",
        tile_size=224,
        diet=Diet(num_images=16, share_pages=0.2, num_questions=6, difficulty=(0.0, 0.6), max_shrink=1.1),
        num_batches=2000,
        rates=(0.4, 0.3),
        weights=Losses(1.0, 1.0, 0.5, 0.3, 0.6),
    ),
    Stage(
        name="all sizes",
        tile_size=224,
        max_tiles=4,
        diet=Diet(
            num_images=16, share_pages=0.1, num_questions=6, difficulty=(0.6, 1.0), share_sheets=0.3, max_shrink=1.3
        ),
        num_batches=2500,
        rates=(0.3, 0.0),
        weights=Losses(1.0, 0.6, 0.5, 0.3, 0.6),
    ),
)
