"""Random contents of a chart: what it is about, its labels, its values and how they are printed."""

import functools
import re
from dataclasses import dataclass, replace
from random import Random

from vlm.training.synthetic.words import (
    YEARS,
    Split,
    in_split,
    months,
    phrase_in_split,
    pseudo_word,
    random_string,
    words,
)

LABEL_KINDS = ("country", "year", "product", "company", "sector", "person", "group", "place", "month", "invented")
TIME_KINDS = ("year", "month", "weekday", "quarter", "day")
LARGE = 400
"""Longest side in pixels from which on a sheet has room for many bars."""


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """How the values of one chart are printed."""

    decimals: int = 0
    thousands: str = ""
    prefix: str = ""
    suffix: str = ""
    trims_zeros: bool = False

    def print(self, number: float) -> str:
        """Return `number` as it stands on the chart, such as "$1,234.5" or "1 234"."""
        digits = f"{number:,.{self.decimals}f}"
        if self.trims_zeros and "." in digits:
            digits = digits.rstrip("0").rstrip(".")
        return self.dress(digits)

    def dress(self, digits: str, *, bare: bool = False) -> str:
        """Return digits such as "-1,234" with our thousands separators and, unless `bare`, sign of money and unit."""
        text = digits.replace(",", self.thousands)
        if bare:
            return text
        sign = "-" if text.startswith("-") else ""
        return f"{sign}{self.prefix}{text.removeprefix('-')}{self.suffix}"


@dataclass(frozen=True, kw_only=True)
class ChartSpec:
    """The contents of one chart.

    label_kind: what the labels are, as a question names them ("country", "year", …).
    split: whose words and numerals are used.
    topic: what is measured, in small letters as it stands inside a question ("coffee exports").
    quantity: "count" (How many …), "amount" (How much …) or "rate" (What was the …).
    numbers: one row a series, one column a label; `printed` the same as it stands on the chart.
    unit_once: only the first label's values have their unit printed, as survey publishers do.
    headings: (label, text) where a group of rows has a heading, above that label.
    across, across_topic: where the points of a scatter chart lie along the axis below, and what it measures.
    notes: paragraphs below the plot. logo: words in the corner.
    neighbours, address: paragraphs above and below the chart on a page, and where that page is.
    """

    split: Split
    title: str
    subtitle: str
    source: str
    topic: str
    quantity: str
    label_kind: str
    labels: tuple[str, ...]
    series_names: tuple[str, ...]
    numbers: tuple[tuple[float, ...], ...]
    format: NumberFormat
    unit_once: bool = False
    headings: tuple[tuple[str, str], ...] = ()
    across: tuple[float, ...] = ()
    across_topic: str = ""
    notes: tuple[str, ...] = ()
    logo: str = ""
    neighbours: tuple[str, ...] = ()
    address: str = ""

    @functools.cached_property
    def printed(self) -> tuple[tuple[str, ...], ...]:
        later = replace(self.format, suffix="") if self.unit_once else self.format
        return tuple((self.format.print(row[0]), *map(later.print, row[1:])) for row in self.numbers)


def bare_number(printed: str) -> str:
    """Return a printed value without thousands separators, unit and sign of money: "$1 234.5M" gives "1234.5"."""
    return re.sub(r"[^0-9.\-]", "", printed)


def draw_spec(
    random: Random,
    split: Split,
    difficulty: float,
    shape: tuple[int, int],
    *,
    label_kind: str | None = None,
    labels: tuple[str, ...] | None = None,
    num_labels: int | None = None,
    num_series: int | None = None,
    series_kind: str = "group",
) -> ChartSpec:
    """Draw the contents of a chart of `shape` (height, width) in pixels; what is given is not drawn.

    `difficulty` in [0, 1] brings more labels, longer words and several series, all the more on a large sheet.
    """
    label_kind = label_kind or _label_kind(random, split)
    large = max(shape) >= LARGE
    num_labels = num_labels or random.randint(3, 4 + round((10 if large else 4) * difficulty))
    labels = labels or _labels(random, split, label_kind, num_labels)
    topic, quantity = draw_topic(random, split)
    if num_series is None:
        num_series = 1
        if random.random() < (0.4 if large else 0.16) * difficulty:
            num_series = random.choice((2, 2, 3, 4) if large else (2, 2, 3))
    number_format, numbers = _values(random, split, quantity, label_kind, len(labels), num_series)
    spec = ChartSpec(
        split=split,
        title=_title(random, split, topic, quantity, label_kind, labels),
        subtitle=_subtitle(random, split, topic, number_format) if random.random() < 0.4 * difficulty else "",
        source=_source(random, split) if random.random() < 0.3 * difficulty else "",
        topic=topic,
        quantity=quantity,
        label_kind=label_kind,
        labels=labels,
        series_names=_series_names(random, split, num_series, labels, series_kind),
        numbers=numbers,
        format=number_format,
    )
    return replace(spec, title="") if random.random() < 0.06 * difficulty else spec


def _label_kind(random: Random, split: Split) -> str:
    kind = random.choices(LABEL_KINDS, weights=(18, 20, 12, 8, 8, 5, 9, 6, 5, 14))[0]
    return "place" if kind == "month" and not months(split) else kind


def _labels(random: Random, split: Split, kind: str, num_labels: int) -> tuple[str, ...]:
    """Draw distinct labels, some of the named ones giving way to invented words, so that letters must be read."""
    if kind == "year":
        return _years(random, split, num_labels)
    if kind == "month":
        first = random.randrange(0, 12)
        names = [months(split)[(first + i) % 12] for i in range(num_labels)]
        short = random.random() < 0.6
        return tuple(name[:3] if short else name for name in names)
    labels: dict[str, None] = {}
    share_invented = 1.0 if kind == "invented" else random.choice((0.0, 0.15, 0.5))
    if share_invented < 0.5 and len(words(kind, split)) < 2 * num_labels:
        # The held-out part of a list can be shorter than a chart has bars.
        share_invented = 0.5
    while len(labels) < num_labels:
        invented = random.random() < share_invented
        labels[_invented(random, split) if invented else random.choice(words(kind, split))] = None
    return tuple(labels)


def _years(random: Random, split: Split, num_labels: int) -> tuple[str, ...]:
    low, high = YEARS[split]
    step = random.choice((1, 1, 1, 1, 2, 4, 5, 10))
    if step * (num_labels - 1) > high - low:
        step = 1
    first = random.randint(low, high - step * (num_labels - 1))
    if split == "train" and step == 1 and random.random() < 0.6:
        first = random.randint(1998, 2022)
    years = [first + step * i for i in range(num_labels)]
    style = random.random()
    if style < 0.06 and step == 1:
        return tuple(f"{year}/{(year + 1) % 100:02d}" for year in years)
    if style < 0.12:
        return tuple(f"'{year % 100:02d}" for year in years)
    if style < 0.16:
        years.reverse()
    return tuple(str(year) for year in years)


def _invented(random: Random, split: Split) -> str:
    draw = random.random()
    if draw < 0.65:
        return pseudo_word(random, split)
    if draw < 0.8:
        return f"{pseudo_word(random, split)} {pseudo_word(random, split)}"
    return random_string(random, split)


def draw_topic(random: Random, split: Split) -> tuple[str, str]:
    """Return what is measured and the kind of quantity it is."""
    draw = random.random()
    if draw < 0.35:
        subject = random.choice(words("product", split)).lower() if random.random() < 0.75 else ""
        measure = random.choice(words("measure", split))
        return f"{subject or pseudo_word(random, split)} {measure}", "amount"
    if draw < 0.65:
        return random.choice(words("counted", split)), "count"
    if draw < 0.9:
        return random.choice(words("rated", split)), "rate"
    return f"{pseudo_word(random, split).lower()} {random.choice(words('measure', split))}", "amount"


def _title(random: Random, split: Split, topic: str, quantity: str, label_kind: str, labels: tuple[str, ...]) -> str:
    """Compose a title; templates whose own words belong to the other split are not used."""
    year = random.randint(*YEARS[split])
    where = random.choice(words(random.choice(("country", "place")), split))
    counted = random.choice((f"number of {topic}", topic)) if quantity == "count" else topic
    head = counted if phrase_in_split(counted, split) else topic
    kind = label_kind if label_kind != "invented" and in_split(label_kind, split) else ""
    if label_kind in TIME_KINDS:
        templates = (f"{head} in {where}", f"{head}, {labels[0]} to {labels[-1]}", f"{where}: {head}", head)
    else:
        by = f" by {kind}" if kind else ""
        templates = (f"{head}{by}", f"{head}{by} in {year}", f"{head}{by}, {year}", f"{head} in {where} {year}", head)
    if random.random() < 0.15:
        title = " ".join(pseudo_word(random, split) for _ in range(random.randint(2, 4)))
    else:
        title = random.choice(templates)
    title = title[0].upper() + title[1:]
    draw = random.random()
    return title.upper() if draw < 0.05 else _capitalised(title) if draw < 0.3 else title


def _capitalised(title: str) -> str:
    return " ".join(word if word in ("of", "in", "by", "to") else word[0].upper() + word[1:] for word in title.split())


def _subtitle(random: Random, split: Split, topic: str, number_format: NumberFormat) -> str:
    units = ("million dollars", "thousands", "tonnes", "units", "points", "index", "billion euros", "persons")
    candidates = [topic] + [unit for unit in units if phrase_in_split(unit, split)]
    if "%" in number_format.suffix:
        return f"in % of {random.choice(candidates)}"
    return f"in {random.choice(candidates)}"


def _source(random: Random, split: Split) -> str:
    publisher = random.choice((*words("source", split), pseudo_word(random, split)))
    head = random.choice([head for head in ("Source:", "Data:", "Note:", "by") if in_split(head.rstrip(":"), split)])
    return f"{head} {publisher}"


def _series_names(random: Random, split: Split, num_series: int, labels: tuple[str, ...], kind: str) -> tuple[str, ...]:
    if num_series == 1:
        return ("",)
    names: dict[str, None] = {}
    while len(names) < num_series:
        name = random.choice(words(kind, split)) if random.random() < 0.7 else pseudo_word(random, split)
        if name not in labels:
            names[name] = None
    return tuple(names)


def draw_number_format(random: Random, quantity: str) -> tuple[NumberFormat, float, float]:
    """Draw a format and the range its numbers come from."""
    trims = random.random() < 0.5
    thousands = random.choice((",", ",", " ", " ", ""))
    if quantity == "rate":
        decimals = random.choice((0, 0, 1, 1, 2))
        suffix = "%" if random.random() < 0.65 else ""
        return NumberFormat(decimals=decimals, suffix=suffix, trims_zeros=trims), 0.5, random.choice((12, 40, 99))
    draw = random.random()
    if draw < 0.3:
        high = random.choice((30, 99, 99, 400, 999))
        return NumberFormat(suffix=random.choice(("", "", "", "%")) if high < 100 else ""), 2, high
    if draw < 0.62:
        decimals = random.choice((1, 1, 2))
        prefix, suffix = random.choice((("", ""), ("", ""), ("", ""), ("$", ""), ("", "M"), ("$", "bn"), ("", "k")))
        number_format = NumberFormat(decimals=decimals, thousands=thousands, prefix=prefix, suffix=suffix)
        return replace(number_format, trims_zeros=trims), 0.2, random.choice((9.9, 50, 99, 999))
    decimals = random.choice((0, 0, 0, 0, 1, 2)) if quantity == "amount" else 0
    prefix = "$" if quantity == "amount" and random.random() < 0.15 else ""
    high = random.choice((3_000, 9_900, 9_900, 60_000, 99_000, 900_000))
    return NumberFormat(decimals=decimals, thousands=thousands, prefix=prefix, trims_zeros=trims), 0.05 * high, high


def _values(
    random: Random, split: Split, quantity: str, label_kind: str, num_labels: int, num_series: int
) -> tuple[NumberFormat, tuple[tuple[float, ...], ...]]:
    """Draw a format and distinct values: a walk for times, often falling for names, as people sort their bars."""
    number_format, low, high = draw_number_format(random, quantity)
    rows = []
    for _ in range(num_series):
        start, drift = random.uniform(low, high), random.uniform(0.03, 0.25) * (high - low)
        walks = label_kind in TIME_KINDS and random.random() < 0.7
        row: list[float] = []
        for i in range(num_labels):
            centre = start if walks else random.uniform(low, high)
            number = number_near(random, split, number_format, centre, (low, high), row)
            start = min(max(number + random.gauss(0, drift), low), high) if walks else start
            row.insert(i, number)
        if not walks and num_series == 1 and label_kind not in TIME_KINDS:
            draw = random.random()
            row.sort(reverse=draw < 0.4) if draw < 0.5 else None
        rows.append(tuple(row))
    return number_format, tuple(rows)


def number_near(
    random: Random,
    split: Split,
    number_format: NumberFormat,
    centre: float,
    limits: tuple[float, float],
    taken: list[float],
) -> float:
    """Return a number near `centre` whose numeral belongs to `split` and which `taken` does not hold."""
    low, high = limits
    spread = 0.01 * (high - low)
    while True:
        number = round(random.gauss(centre, spread), number_format.decimals)
        digits = bare_number(number_format.print(number)).replace(".", "")
        if 0 < number <= high and number not in taken and in_split(digits, split):
            return number
        spread, high = min(1.15 * spread, high - low), 1.01 * high
