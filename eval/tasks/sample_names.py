"""What samples are called: by the data's own ids, or by what they ask, which is the same wherever a row stands."""

import hashlib
import itertools
import json
from pathlib import Path

from msgspec.structs import replace

from eval.datasets.row import Row
from eval.records import Field, Sample


class SampleNames:
    """The names that the samples of one task have, each once."""

    def __init__(self, *, by_half: bool):
        """by_half: questions that are equal but for the field "split" are named apart, whichever comes first."""
        self._by_half = by_half
        self._taken: set[int] = set()

    def named(self, sample: Sample, row: Row) -> Sample:
        """Return the sample with an id that none before it has; one without is named by what it asks.

        Raises: VLMError for an id that comes a second time.
        """
        if sample.id and not self._is_new(sample.id):
            raise row.damaged("id", f"{sample.id[:60]!r} for a second time", "an id of its own for each question")
        if sample.id:
            return sample
        # Equal in all that is asked and expected: which of them is the second makes no difference.
        name = _content_name(sample, sample.fields.get("split") if self._by_half else None)
        return replace(sample, id=self.unused(name))

    def unused(self, name: str) -> str:
        """Return `name`, or the first of name-2, name-3, ... that is not taken yet, and take it."""
        copies = (f"{name}-{number}" for number in itertools.count(2))
        return next(each for each in itertools.chain([name], copies) if self._is_new(each))

    def _is_new(self, name: str) -> bool:
        # 64 bits an id: a hundred thousand of them are no burden, and two are equal in one of 10^9 such runs.
        key = hash(name)
        is_new = key not in self._taken
        self._taken.add(key)
        return is_new


def _content_name(sample: Sample, half: Field) -> str:
    """Return a name made of a sample's pictures, question, answers and half, the same wherever the row stands."""
    images = [image.id for image in sample.images]
    asked = json.dumps([images, sample.question, sample.targets, sample.options, half])
    start = Path(images[0]).stem if images else "text"
    return f"{start}-{hashlib.sha256(asked.encode()).hexdigest()[:10]}"
