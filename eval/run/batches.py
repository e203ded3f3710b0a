"""Which questions are computed together: those about one image, side by side."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from eval.backends import Question


def planned(questions: Iterable[Question], batch_size: int) -> Iterator[list[Question]]:
    """Yield all questions in batches, those about one image side by side.

    The same questions always give the same batches, so that a run that was interrupted computes what is left in the
    company in which it would have been computed, and gives the same numbers to the last bit.
    """
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.sample.cluster, []).append(question)
    ordered = (question for group in by_image.values() for question in group)
    for _, alike in groupby(ordered, key=_generated_alike):
        row = list(alike)
        for start in range(0, len(row), batch_size):
            yield row[start : start + batch_size]


def _generated_alike(question: Question) -> tuple:
    """Return what one batch must agree on."""
    return bool(question.prompt.prefill), question.prompt.max_new_tokens
