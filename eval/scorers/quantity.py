"""Numbers as charts and people write them, read exactly: commas, currencies, percent signs and minus signs."""

import re
from dataclasses import dataclass
from fractions import Fraction

from eval.scorers.answer import CURRENCY_SIGNS, bare_text, plain_text

MAX_CHARS = 60
"""Longer texts are no number that a chart shows, and could cost much to compute with."""

_CURRENCY = rf"(?:US|CA|AU|NZ|HK|A|C|R)?[{CURRENCY_SIGNS}]|USD|EUR|GBP|JPY|CNY|INR|KRW|CHF|CAD|AUD|BRL"
_DIGITS = "|".join(
    (
        r"(?P<commas>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?)",
        r"(?P<lakhs>[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d*)?)",
        r"(?P<gaps>[1-9]\d{0,2}(?:[ '’]\d{3})+(?:[.,]\d+)?)",
        r"(?P<dots>[1-9]\d{0,2}(?:\.\d{3})+,\d+)",
        r"(?P<decimal_comma>\d+,\d{1,2})",
        r"(?P<plain>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)",
    )
)
QUANTITY = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<before>{_CURRENCY})? ?(?P<inner_sign>[+-]?)(?:{_DIGITS})"
    rf" ?(?P<after>%|percent|per cent|{_CURRENCY})?\.?",
    re.ASCII,
)
_SAME_UNIT = {"percent": "%", "per cent": "%", "US$": "$", "USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹"}


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number and what it counts."""

    value: Fraction
    """As written: 45 for "45%"."""
    unit: str
    """"%", a currency, or ""."""

    @property
    def is_percent(self) -> bool:
        return self.unit == "%"


def read_quantity(text: str) -> Quantity | None:
    """Return the number that the whole of `text` is, None when it is none.

    Not read are what only Python takes for numbers ("1_000", "nan", "inf"), words, ratios, powers ("5²"), and "1,23,4".
    """
    text = plain_text(text)
    found = QUANTITY.fullmatch(text) if len(text) <= MAX_CHARS else None
    if found is None or (found["sign"] and found["inner_sign"]) or (found["before"] and found["after"]):
        return None
    value = Fraction(_with_point(found))
    negative = "-" in (found["sign"], found["inner_sign"])
    unit = found["before"] or found["after"] or ""
    return Quantity(value=-value if negative else value, unit=_SAME_UNIT.get(unit, unit))


def _with_point(found: re.Match) -> str:
    """Return the digits of a match with a decimal point and nothing between thousands."""
    for kind in ("commas", "lakhs"):
        if found[kind]:
            return found[kind].replace(",", "").rstrip(".")
    if found["gaps"]:
        return re.sub(r"[ '’]", "", found["gaps"]).replace(",", ".")
    if found["dots"]:
        return found["dots"].replace(".", "").replace(",", ".")
    return (found["decimal_comma"] or found["plain"]).replace(",", ".")


def is_within(answer: Quantity, target: Quantity, tolerance: Fraction) -> bool:
    """Whether `answer` differs from `target` by at most `tolerance` of it; from zero nothing but zero does.

    Where one side alone has a percent sign, the other may be the same number without it or the fraction: 45 and 0.45
    both stand for "45%". Amounts of two different currencies are never the same.
    """
    if answer.unit and target.unit and answer.unit != target.unit:
        return False
    pairs = [(answer.value, target.value)]
    if answer.is_percent != target.is_percent:
        pairs.append((_as_fraction(answer), _as_fraction(target)))
    return any(abs(value - scale) <= tolerance * abs(scale) for value, scale in pairs)


def is_same_rounded(answer: str, target: str, decimals: int | None) -> bool:
    """Whether two texts are the same number, rounded to so many decimals unless None, or the same text but for case."""
    answer, target = bare_text(answer), bare_text(target)
    value, wanted = read_quantity(answer), read_quantity(target)
    if value is None or wanted is None:
        return answer.casefold() == target.casefold()
    values = value.value, wanted.value
    return len(set(values if decimals is None else (round(each, decimals) for each in values))) == 1


def _as_fraction(quantity: Quantity) -> Fraction:
    return quantity.value / 100 if quantity.is_percent else quantity.value
