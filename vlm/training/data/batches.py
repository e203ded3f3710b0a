"""The samples of each step, read and cut into rows; what cannot be used is named and left out."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset

from vision_encoder.preprocess import ImageProcessor, ProcessedImage
from vlm.errors import VLMError, public
from vlm.training.data.layouts import read_sample
from vlm.training.data.order import Order
from vlm.training.data.samples import Sample
from vlm.training.data.stored import Rows
from vlm.training.rows import Row

MAX_POISON_AHEAD = 1000
"""How many samples of a source are tried before a run begins, if none of them can be used."""


class Source(NamedTuple):
    """One source of training data."""

    lines: Rows
    image_folder: Path
    weight: float | None = None
    """Share in what is learned, up to a factor; None: the number of samples."""
    digest: str = ""
    """Of what lies in its files; see `digest_files`."""


class Example(NamedTuple):
    """One sample as the model reads it."""

    id: str
    place: tuple[int, int]
    """Its source and its place there."""
    rows: list[Row]
    """One, or for a preference the chosen and the rejected reply."""
    number: int = 0
    """Its place in the order of the run."""


class Poison(NamedTuple):
    """A sample that cannot be used."""

    id: str
    reason: str


class StepData(NamedTuple):
    """What one step learns from."""

    examples: list[Example]
    poison: list[Poison]


Cut = Callable[[Sample, Callable[[object], ProcessedImage]], list[Row]]
"""Makes rows of a sample, opening its images by the function given."""


class StepBatches(Dataset):
    """The samples of step `index`, whatever happened before."""

    def __init__(
        self,
        sources: Sequence[Source],
        cut: Cut,
        processor: ImageProcessor | None,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        max_length: int,
    ):
        empty = [source.lines.title for source in sources if not len(source.lines)]
        if empty or not sources:
            raise VLMError("invalid_request", f"no sample lies in {', '.join(empty) or 'the data'}; give one each")
        self.sources, self.cut, self.processor = list(sources), cut, processor
        self.batch_size, self.max_length = batch_size, max_length
        sizes = [len(source.lines) for source in sources]
        weights = None
        if any(source.weight for source in sources):
            weights = [source.weight or size for source, size in zip(sources, sizes, strict=True)]
        groups = [source.lines.groups for source in sources]
        self.order = Order(sizes, weights, seed=seed, shuffle=shuffle, groups=groups)
        self.usable: Container[tuple[int, int]] | None = None
        """Source and place of the samples that may be used; None: of all."""

    @property
    def num_samples(self) -> int:
        return sum(self.order.sizes)

    def __getitem__(self, index: int) -> StepData:
        return self.at(range(index * self.batch_size, (index + 1) * self.batch_size))

    def at(self, numbers: Iterable[int]) -> StepData:
        """Return the samples that stand at `numbers` in the order of the run."""
        examples, poison = [], []
        for number in numbers:
            found = self.read(*self.order[number])
            if isinstance(found, Poison):
                poison.append(found)
            else:
                examples.append(found._replace(number=number))
        return StepData(examples, poison)

    def every(self, share: int = 0, count: int = 1) -> Iterator[Example | Poison]:
        """Yield each sample of every source once, in the order of the files; of `count` equal shares, one."""
        for source, size in enumerate(self.order.sizes):
            for place in range(share, size, count):
                yield self.read(source, place)

    def refuse_poison(self) -> None:
        """Look for a sample that can be used in each source. Raises: VLMError for a source that has none."""
        for number, source in enumerate(self.sources):
            tried = range(min(len(source.lines), MAX_POISON_AHEAD))
            if all(isinstance(last := self.read(number, place), Poison) for place in tried):
                raise VLMError(
                    "invalid_request",
                    f"none of the first {len(tried)} samples of {source.lines.title!s:.60} can be used; "
                    f"the last one: {last.reason}",
                )

    def read(self, source: int, place: int) -> Example | Poison:
        """Return one sample, or why it cannot be used."""
        lines = self.sources[source].lines
        name = lines.name(place)
        try:
            row = lines[place]
            if isinstance(row, dict) and isinstance(row.get("id"), str | int):
                name = str(row["id"])[:100]
            rows = public(self.cut)(read_sample(row, self.sources[source].image_folder), self._open)
        except VLMError as error:
            return Poison(name, error.message)
        longest = max(len(row.ids) for row in rows)
        if longest > self.max_length:
            return Poison(name, f"the sample has {longest} tokens, more than max_length {self.max_length}")
        if self.usable is not None and (source, place) not in self.usable:
            return Poison(
                name,
                "the sample could not be used when the reference of the run was computed; give another out to learn "
                "from it",
            )
        return Example(name, (source, place), rows)

    def _open(self, image: object) -> ProcessedImage:
        if self.processor is None:
            raise VLMError("invalid_request", "the sample has an image and the model is for text only")
        return self.processor(image)
