"""Which samples of a task a run takes."""

import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from msgspec.structs import replace

from eval.records import ImageRef, Sample
from vlm.errors import VLMError


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which samples, and with which pictures."""

    limit: int | None = None
    """The first so many of each task, of `samples` if there are any."""
    samples: tuple[str, ...] = ()
    """Ids, or several with commas between where no sample is called that; empty takes all."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What the tasks' own loading takes, as {"variant": "opaque"}."""
    blank_images: bool = False
    """Show an empty picture of the same size instead: what a model answers without looking."""

    def ids(self, known: Collection[str]) -> list[str]:
        """Return the ids that `samples` names, `known` being those of the data."""
        words = [word.strip() for word in self.samples]
        parted = (part.strip() for word in words for part in ([word] if word in known else word.split(",")))
        return list(dict.fromkeys(filter(None, parted)))

    def described(self, known: Collection[str]) -> dict:
        """Return the selection as the manifest holds it; `known` are the ids of the chosen samples."""
        return {
            "limit": self.limit,
            "samples": self.ids(known) or None,
            "options": dict(self.options),
            "images": "blank" if self.blank_images else "as they are",
        }


def select(tasks: Mapping[str, Iterable[Sample]], selection: Selection) -> dict[str, list[Sample]]:
    """Return the chosen samples of each task.

    Raises: VLMError for an id that two samples of a task share, and for a chosen one that none has.
    """
    if selection.samples:
        tasks = _named(tasks, selection)
    chosen = {name: list(islice(samples, selection.limit)) for name, samples in tasks.items()}
    for name, samples in chosen.items():
        _check_unique(name, samples)
    if not any(chosen.values()):
        raise VLMError("invalid_request", f"{', '.join(tasks):.100}: no samples are left to answer; choose others")
    if selection.blank_images:
        chosen = {name: [_blanked(sample) for sample in samples] for name, samples in chosen.items()}
    return chosen


def _named(tasks: Mapping[str, Iterable[Sample]], selection: Selection) -> dict[str, list[Sample]]:
    """Return the samples of each task that the selection names."""
    everything = {name: list(samples) for name, samples in tasks.items()}
    known = {sample.id for samples in everything.values() for sample in samples}
    wanted = set(selection.ids(known))
    if wanted - known:
        missing = ", ".join(sorted(wanted - known)[:5])
        raise VLMError(
            "invalid_request", f"no sample has the id {missing:.200}; give ids as predictions.jsonl has them"
        )
    return {name: [sample for sample in samples if sample.id in wanted] for name, samples in everything.items()}


def _check_unique(task: str, samples: Sequence[Sample]) -> None:
    counts = Counter(sample.id for sample in samples)
    if len(counts) < len(samples):
        ((twice, _),) = counts.most_common(1)
        raise VLMError(
            "invalid_request",
            f"two samples of {task} have the id {twice[:60]!r}; expected each once; is a file there twice?",
        )


def _blanked(sample: Sample) -> Sample:
    return replace(sample, images=tuple(ImageRef(id=image.id, load=_Blank(image)) for image in sample.images))


@dataclass(frozen=True)
class _Blank:
    """Makes a white picture of the size of another."""

    image: ImageRef

    def __call__(self) -> bytes:
        from PIL import Image

        content = io.BytesIO()
        Image.new("RGB", self.image.decoded().size, "white").save(content, format="PNG")
        return content.getvalue()
