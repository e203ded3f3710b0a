"""How many questions are computed together: as many as fit, and half as many when they do not."""

import math
from collections.abc import Callable

ROWS_ON_CPU = 8
MAX_ROWS_ON_ACCELERATOR = 64
ROWS_OF_SMALL_MODEL = 32
SMALL_MODEL_BYTES = 2**28
"""With so few weights a step takes as long for many rows as for one; with more, minutes would pass without a record."""
ROW_TOKENS = 1536
"""Counted for a prompt and its reply, whose lengths are not known before."""
MEMORY_SHARE = 0.6
"""Of the free memory; the rest is for what a layer computes."""
GROW_AFTER = 16
"""Parts that fit in a row before twice as many rows are tried again."""


class Halving:
    """Calls a function on rows, on fewer at once whenever the memory runs out.

    call: takes a list of rows and returns as many results.
    out_of_memory: says whether an exception means that.
    free: gives back what the failed call still holds.
    """

    def __init__(self, call: Callable, *, out_of_memory: Callable[[BaseException], bool], free: Callable[[], None]):
        self._call, self._out_of_memory, self._free = call, out_of_memory, free
        self._most: int | None = None
        self._fitted = 0

    def __call__(self, rows: list, alone_failed: object) -> list:
        """Return a result a row, each row computed once; `alone_failed` for a row that is too much by itself."""
        results: list = []
        while len(results) < len(rows):
            size = len(rows) if self._most is None else self._most
            part = rows[len(results) : len(results) + size]
            found = self._attempt(part)
            if found is not None:
                results += found
                self._fits(len(rows))
            elif len(part) == 1:
                results.append(alone_failed)
            else:
                self._most, self._fitted = len(part) // 2, 0
        return results

    def _attempt(self, part: list) -> list | None:
        try:
            return self._call(part)
        except Exception as error:
            if not self._out_of_memory(error):
                raise
        # Out here the exception, and with it every frame that holds a tensor, is gone.
        self._free()
        return None

    def _fits(self, wanted: int) -> None:
        self._fitted += 1
        if self._most is not None and self._fitted >= GROW_AFTER:
            self._most, self._fitted = self._most * 2, 0
            if self._most >= wanted:
                self._most = None


def rows_on_cpu(weight_bytes: int) -> int:
    """Return how many questions a CPU computes together."""
    return ROWS_OF_SMALL_MODEL if weight_bytes <= SMALL_MODEL_BYTES else ROWS_ON_CPU


def rows_that_fit(*, free_bytes: int, token_bytes: int, image_bytes: int) -> int:
    """Return how many questions an accelerator computes together in `free_bytes`, each with one image of its own."""
    # An image is held twice: in the cache, and in the batch where rows of several images are joined.
    row_bytes = ROW_TOKENS * token_bytes + 2 * image_bytes
    return max(1, min(MAX_ROWS_ON_ACCELERATOR, math.floor(MEMORY_SHARE * free_bytes / row_bytes)))
