"""What a stage of the training is fed: how many pictures of which kinds, and what is asked about them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Diet:
    """What a stage of the training is fed."""

    num_images: int
    """Pictures in a batch."""
    share_pages: float
    """How many of them are pages of print rather than charts."""
    num_questions: int
    """Questions about each chart; none while the encoder learns to read."""
    difficulty: tuple[float, float] = (1.0, 1.0)
    """Of the charts in the first batch and in the last, a straight line between."""
    share_sheets: float = 0.0
    """How many batches are of half as many pictures, in all sizes up to two by two tiles rather than one tile large."""
    share_several_series: float = 0.0
    """How many of the charts have several series whatever would be drawn otherwise."""
    share_real: float = 0.0
    """How many of the pictures of two by two tiles are real charts, where there are any."""
    share_real_print: float = 0.0
    """How many of the others are real charts of which is known what is printed where, where there are any."""
    share_strange_words: float = 0.0
    """How many of the charts are written in words of no list, so that each letter has to be read."""
    max_shrink: float = 1.0
    """Half of the pictures are drawn up to so much larger than the model sees them, as publishers' are."""
    max_enlarge: float = 1.0
    """Half of the charts are drawn up to so much smaller than the model sees them, as in its larger views."""
    share_wide_charts: float = 0.0
    """How many of the charts come from the wider variety of kinds."""
    share_wide_questions: float = 0.0
    """How many of the charts are asked what people ask as well: calculations, colours, trends, tables."""
    share_declined: float = 0.0
    """How many of the questions about charts are about something that the chart does not show."""
    share_counted: float = 0.0
    """How many of the charts are asked besides how many bars there are, or for a caption, which tells it too."""
    share_diagrams: float = 0.0
    """How many of the pictures are diagrams, with questions of their own."""
    share_no_charts: float = 0.0
    """How many of the pictures are no charts and are asked about as if they were."""
    is_thinned: bool = False
    """Whether the encoder goes through few of the blank patches (see `thinning.py`)."""
    max_stretch: float = 1.0
    """How much wider or narrower than it is drawn a chart may be shown: a stretched face is a face never seen."""
