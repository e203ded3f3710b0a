"""The stages of the training: letters first, then words, then questions about charts, then charts of all sizes, then
the decoder alone on pictures as they are shown when it answers, and at the end all once more, and the decoder.

About as they were run for the weights that ship (their card says what differed): the first three in an hour on two CPU
cores, then on a GPU thirteen minutes for the next two, thirteen for the one after, eight for "everything" and eleven
for "more of everything"; "as it answers" took 113 minutes on two cores, "enlarged" nine on a GPU, and "what is not
shown" 38 on two cores.
"""

from dataclasses import dataclass, replace

from vlm.training.reader.diet import Diet
from vlm.training.reader.model import Losses


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training: what is fed, how long, and how fast is learned."""

    name: str
    diet: Diet
    num_batches: int
    rates: tuple[float, float]
    """Share of the peak learning rates at the first and at the last batch, a straight line between."""
    weights: Losses
    """Of the losses, in their sum."""
    decoder_alone: bool = False
    """Whether the encoder is held, and pictures are shown as they are when it answers (see `shown.py`)."""
    mean_of: tuple[float, ...] = ()
    """After which shares of the stage the weights are taken whose mean it ends with; those named more than once count
    so often. Where there are none, it ends with its last."""


_CHARACTERS = Losses(
    answer=0.0,
    characters=1.0,
    links=0.0,
    partners=0.0,
    shades=0.0,
    magnitudes=0.0,
    order=0.0,
    beginning=0.0,
    pointers=0.0,
)
_ANSWERS = _CHARACTERS._replace(answer=1.0, characters=0.0)
_WORDS = _CHARACTERS._replace(links=0.4, partners=0.3, shades=0.5, magnitudes=0.5, order=0.2, beginning=0.2)
_QUESTIONS = Losses(
    answer=1.0,
    characters=1.0,
    links=0.4,
    partners=0.3,
    shades=0.5,
    magnitudes=0.5,
    order=0.3,
    beginning=0.5,
    pointers=0.6,
)
_EVERYTHING = _QUESTIONS._replace(links=0.3, shades=1.0, magnitudes=1.0, order=0.15, beginning=0.35)
_EVERY_KIND = Diet(
    num_images=240,
    share_pages=0.04,
    num_questions=7,
    difficulty=(0.93, 0.93),
    share_sheets=0.6,
    share_several_series=0.25,
    share_real=0.12,
    share_real_print=0.08,
    share_strange_words=0.6,
    max_shrink=1.3,
    max_stretch=1.2,
    share_wide_charts=0.5,
    share_wide_questions=0.6,
    share_declined=0.06,
    share_diagrams=0.05,
    share_no_charts=0.04,
)

_MORE_OF_EVERYTHING = replace(
    _EVERY_KIND,
    share_pages=0.05,
    share_wide_questions=0.5,
    share_declined=0.08,
    share_diagrams=0.04,
    share_no_charts=0.03,
    is_thinned=True,
)
_AS_IT_ANSWERS = replace(
    _EVERY_KIND,
    num_images=16,
    share_pages=0.0,
    share_real=0.3,
    share_real_print=0.0,
    share_wide_questions=0.5,
    share_declined=0.16,
    share_diagrams=0.04,
    share_no_charts=0.03,
    share_counted=0.3,
)

STAGES = (
    Stage(
        name="letters",
        diet=Diet(num_images=8, share_pages=1.0, num_questions=0),
        num_batches=262,
        rates=(1.0, 0.9),
        weights=_CHARACTERS,
    ),
    Stage(
        name="words",
        diet=Diet(num_images=8, share_pages=0.5, num_questions=0, difficulty=(0.0, 0.7), max_shrink=1.2),
        num_batches=280,
        rates=(0.7, 0.4),
        weights=_WORDS,
    ),
    Stage(
        name="questions",
        diet=Diet(num_images=8, share_pages=0.15, num_questions=6, difficulty=(0.0, 0.7), max_shrink=1.2),
        num_batches=1003,
        rates=(0.25, 0.15),
        weights=_QUESTIONS,
    ),
    Stage(
        name="many questions",
        diet=Diet(num_images=128, share_pages=0.12, num_questions=6, difficulty=(0.4, 0.8), max_shrink=1.2),
        num_batches=817,
        rates=(0.6, 0.39),
        weights=_QUESTIONS,
    ),
    Stage(
        name="all sizes",
        diet=Diet(
            num_images=96, share_pages=0.08, num_questions=6, difficulty=(0.9, 0.93), share_sheets=0.7, max_shrink=1.35
        ),
        num_batches=1279,
        rates=(0.39, 0.0),
        weights=_QUESTIONS._replace(characters=0.7, links=0.2, order=0.1, beginning=0.3),
    ),
    Stage(
        name="several series",
        diet=Diet(
            num_images=320,
            share_pages=0.06,
            num_questions=6,
            difficulty=(0.9, 0.92),
            share_sheets=0.6,
            share_several_series=0.25,
            share_real=0.15,
            max_shrink=1.35,
        ),
        num_batches=941,
        rates=(0.55, 0.0),
        weights=_QUESTIONS._replace(characters=0.8, links=0.3, shades=1.0, order=0.15, beginning=0.35),
    ),
    Stage(
        name="everything",
        diet=_EVERY_KIND,
        num_batches=911,
        rates=(0.45, 0.0),
        weights=_EVERYTHING,
    ),
    Stage(
        name="more of everything",
        diet=_MORE_OF_EVERYTHING,
        num_batches=1763,
        rates=(0.4, 0.0),
        weights=_EVERYTHING,
    ),
    Stage(
        name="as it answers",
        diet=_AS_IT_ANSWERS,
        num_batches=769,
        rates=(0.02, 0.0),
        weights=_ANSWERS,
        decoder_alone=True,
        mean_of=(0.0, 0.5, 1.0),
    ),
    Stage(
        name="enlarged",
        diet=replace(_MORE_OF_EVERYTHING, share_declined=0.12, share_counted=0.3, max_enlarge=1.5),
        num_batches=560,
        rates=(0.3, 0.0),
        weights=_EVERYTHING,
        mean_of=(0.0, 1.0),
    ),
    Stage(
        name="what is not shown",
        diet=replace(_AS_IT_ANSWERS, share_declined=0.2),
        num_batches=262,
        rates=(0.015, 0.0),
        weights=_ANSWERS,
        decoder_alone=True,
        mean_of=(0.0, 1.0, 1.0, 1.0),
    ),
)
