"""Which sample comes when: a function of the seed alone, so that a run goes on where it stopped."""

from collections.abc import Sequence

import numpy as np


class Order:
    """The endless order of samples from several sources, each shuffled anew every time it is through."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int, shuffle: bool = True):
        """`weights` are the shares of the sources in what is drawn, up to a factor."""
        self.sizes, self.seed, self.shuffle = list(sizes), seed, shuffle
        self.shares = np.array(weights, dtype=np.float64) / sum(weights)
        self._drawn: list[np.ndarray] = []
        """For each block of draws the source of each and its place among that source's draws, [2, block]."""
        self._counts = np.zeros(len(self.sizes), dtype=np.int64)
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Return (source, sample in it) of the sample at `place`."""
        while place >= len(self._drawn) * _BLOCK:
            self._draw_block()
        block = self._drawn[place // _BLOCK]
        source, rank = (int(value) for value in block[:, place % _BLOCK])
        epoch, index = divmod(rank, self.sizes[source])
        return source, int(self._permutation(source, epoch)[index]) if self.shuffle else index

    def _draw_block(self) -> None:
        if len(self.sizes) == 1:
            sources = np.zeros(_BLOCK, dtype=np.int64)
        else:
            draws = np.random.default_rng([self.seed, 0, len(self._drawn)]).random(_BLOCK)
            sources = np.minimum(np.searchsorted(self.shares.cumsum(), draws, side="right"), len(self.sizes) - 1)
        ranks = np.empty(_BLOCK, dtype=np.int64)
        for source in range(len(self.sizes)):
            here = sources == source
            ranks[here] = self._counts[source] + np.arange(here.sum())
            self._counts[source] += here.sum()
        self._drawn.append(np.stack([sources, ranks]))

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        known = self._permutations.get(source)
        if known is None or known[0] != epoch:
            rng = np.random.default_rng([self.seed, 1, source, epoch])
            self._permutations[source] = epoch, rng.permutation(self.sizes[source])
        return self._permutations[source][1]


_BLOCK = 1 << 14
