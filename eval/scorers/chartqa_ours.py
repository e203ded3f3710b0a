"""ChartQA as we score it: the reply's own answer, compared exactly in decimals.

Numbers may be off by 5 % of the gold answer, reckoned in decimals, so that 0.95 is within 5 % of 1 as the paper means
it; zero is a number; texts must be equal but for case, blanks, quotes and an end period; a list must have the gold
list's elements in any order. Nothing is searched for in a sentence, and nothing is guessed.

A year is a number like others in `ours`, as in the paper; `ours_years_exact` is the same with years exact.
"""

import re
from fractions import Fraction

from eval.scorers.answer import bare_text, final_answer
from eval.scorers.python_list import python_list
from eval.scorers.quantity import is_within, read_quantity
from eval.scorers.verdict import Case, Scorer, Verdict, right

TOLERANCE = Fraction(5, 100)
YEAR = re.compile(r"1[5-9]\d\d|20\d\d")


def ours(case: Case, *, years_exact: bool = False) -> Verdict:
    """The reply's answer against each accepted answer."""
    answer = final_answer(case.prediction)
    if answer is None:
        return Verdict.unparsed()
    return right(any(is_answer(answer, target, years_exact=years_exact) for target in case.targets), answer)


def ours_years_exact(case: Case) -> Verdict:
    """As `ours`, and where the gold answer is a year no other year is accepted."""
    return ours(case, years_exact=True)


def is_answer(answer: str, target: str, *, years_exact: bool = False) -> bool:
    """Whether `answer` says what `target` says: one value, or a list written "[a, b]" in any order."""
    if not (target := target.strip()).startswith("[") or not target.endswith("]"):
        return is_same(answer, target, years_exact=years_exact)
    answers, targets = sorted(list_elements(answer), key=_order), sorted(list_elements(target), key=_order)
    return len(answers) == len(targets) and all(
        is_same(*pair, years_exact=years_exact) for pair in zip(answers, targets, strict=True)
    )


def is_same(answer: str, target: str, *, years_exact: bool = False) -> bool:
    """Whether two values are equal: numbers within the tolerance, or the same text."""
    answer, target = bare_text(answer), bare_text(target)
    if (scale := read_quantity(target)) is not None and (value := read_quantity(answer)) is not None:
        is_year = years_exact and YEAR.fullmatch(target) is not None
        return is_within(value, scale, Fraction(0) if is_year else TOLERANCE)
    return answer.casefold() == target.casefold()


_NO_THOUSANDS = r"(?<!\d),|,(?!\d{3}(?!\d))"
"""A comma that is not between a digit and exactly three."""


def list_elements(text: str) -> list[str]:
    """Return the elements of "[a, b]", or of "a, b and c"."""
    text = text.strip().removesuffix(".")
    inner = text
    if text.startswith("[") and text.endswith("]"):
        if (elements := python_list(text)) is not None:
            return [str(element) for element in elements]
        inner = text[1:-1]
    # "1,000, 2,000" has two elements: where blanks follow commas, only those commas part them.
    comma = r",\s+" if re.search(r",\s", inner) else _NO_THOUSANDS
    parts = re.split(rf"{comma}|;|\s+and\s+", re.sub(r",?\s+and\s+", " and ", inner))
    if len(parts) == 1:
        # Where a list is asked for, "100,200" is two elements.
        parts = inner.split(",")
    return [part.strip() for part in parts if part.strip()]


def _order(element: str) -> tuple[bool, Fraction, str]:
    """Sort numbers by value and before texts, so that elements that may be equal stand at one place."""
    quantity = read_quantity(bare_text(element))
    if quantity is None:
        return True, Fraction(0), bare_text(element).casefold()
    return False, quantity.value, ""


SCORERS = (
    Scorer(family="chartqa", name="ours", version=2, source="Sightline", rule=ours),
    Scorer(family="chartqa", name="ours_years_exact", version=2, source="Sightline", rule=ours_years_exact),
)
