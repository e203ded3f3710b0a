"""What the server and its worker process say to each other, besides jobs and their events."""

from typing import NamedTuple

from vlm.serving.model_process.job import Event, Job

# To the worker


class Submit(NamedTuple):
    """Answer this."""

    key: int
    job: Job


class Cancel(NamedTuple):
    """Nobody waits for this one any more."""

    key: int


class Stop(NamedTuple):
    """End the process."""


# From the worker


class ServedInfo(NamedTuple):
    """What clients may know of the model."""

    name: str
    max_context: int
    dtype: str
    num_parameters: int
    num_bytes: int
    has_images: bool


class Ready(NamedTuple):
    """The model is loaded."""

    info: ServedInfo


class Refused(NamedTuple):
    """The model cannot be loaded; another try would end the same way."""

    code: str
    message: str


class ImageCounts(NamedTuple):
    """How the cache of encoded images did."""

    hits: int = 0
    misses: int = 0
    num_bytes: int = 0
    """Held now."""


class Report(NamedTuple):
    """What happened since the last one; without events, a sign of life that answers a `Cancel`."""

    events: list[tuple[int, Event]]
    images: ImageCounts
    """Since the process began."""
