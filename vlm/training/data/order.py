"""Which sample comes when: a function of the seed alone, so that a run goes on where it stopped."""

from collections.abc import Sequence

import numpy as np

from vlm.training.data.stored import Groups


class Order:
    """The endless order of samples from several sources, each shuffled anew every time it is through.

    Without shuffling, and without weights, the sources come one after the other.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None,
        *,
        seed: int,
        shuffle: bool = True,
        groups: Sequence[Groups | None] | None = None,
    ):
        """`weights` are the shares of the sources in what is drawn, up to a factor; None: each comes as often as it has
        samples, so that every sample of all comes once before any comes again.

        A source of which samples lie in `groups` is shuffled group by group, and the samples of as many groups as may
        be held at once among each other.
        """
        self.sizes, self.seed, self.shuffle = list(sizes), seed, shuffle
        self.shares = None if weights is None else np.array(weights, dtype=np.float64) / sum(weights)
        self._ends = np.cumsum(self.sizes)
        self.groups = groups or [None] * len(self.sizes)
        self._counts = [np.zeros(len(self.sizes), dtype=np.int64)]
        """For each block of draws how often each source was drawn before it."""
        self._block: tuple[int, np.ndarray] | None = None
        self._round: tuple[int, np.ndarray, np.ndarray] | None = None
        """A time through all samples, with source and place of each."""
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Return (source, sample in it) of the sample at `place`."""
        return self._once_each(place) if self.shares is None else self._drawn(place)

    def _once_each(self, place: int) -> tuple[int, int]:
        epoch, index = divmod(place, int(self._ends[-1]))
        if not self.shuffle:
            source = int(np.searchsorted(self._ends, index, side="right"))
            return source, index - int(self._ends[source] - self.sizes[source])
        if self._round is None or self._round[0] != epoch:
            sources = np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)
            np.random.default_rng([self.seed, 2, epoch]).shuffle(sources)
            places = np.empty(len(sources), dtype=np.int64)
            for source in range(len(self.sizes)):
                places[sources == source] = self._shuffled(source, epoch)
            self._round = epoch, sources, places
        _, sources, places = self._round
        return int(sources[index]), int(places[index])

    def _drawn(self, place: int) -> tuple[int, int]:
        number, offset = divmod(place, _BLOCK)
        while number >= len(self._counts):
            drawn = np.bincount(self._sources(len(self._counts) - 1), minlength=len(self.sizes))
            self._counts.append(self._counts[-1] + drawn)
        sources = self._sources(number)
        source = int(sources[offset])
        rank = int(self._counts[number][source] + (sources[:offset] == source).sum())
        epoch, index = divmod(rank, self.sizes[source])
        return source, int(self._permutation(source, epoch)[index]) if self.shuffle else index

    def _sources(self, number: int) -> np.ndarray:
        """Return the source of each draw of a block."""
        if self._block is None or self._block[0] != number:
            draws = np.random.default_rng([self.seed, 0, number]).random(_BLOCK)
            sources = np.searchsorted(self.shares.cumsum(), draws, side="right")
            self._block = number, np.minimum(sources, len(self.sizes) - 1)
        return self._block[1]

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        known = self._permutations.get(source)
        if known is None or known[0] != epoch:
            self._permutations[source] = epoch, self._shuffled(source, epoch)
        return self._permutations[source][1]

    def _shuffled(self, source: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 1, source, epoch])
        groups = self.groups[source]
        return rng.permutation(self.sizes[source]) if groups is None else _by_groups(rng, groups)


def _by_groups(rng: np.random.Generator, groups: Groups) -> np.ndarray:
    """Return the places of a source, shuffled so that few groups are in use at any time."""
    starts = groups.sizes.cumsum() - groups.sizes
    spans = [np.arange(start, start + size) for start, size in zip(starts, groups.sizes, strict=True)]
    chosen = rng.permutation(len(spans))
    together = [chosen[first : first + groups.at_once] for first in range(0, len(spans), groups.at_once)]
    return np.concatenate([rng.permutation(np.concatenate([spans[group] for group in held])) for held in together])


_BLOCK = 1 << 14
