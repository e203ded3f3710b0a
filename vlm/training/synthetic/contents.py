"""Contents of the wider variety of charts: signed values, decades, years in a row, shares of a hundred, notes."""

import math
from dataclasses import replace
from random import Random

from vlm.training.synthetic.canvas import DoesNotFit
from vlm.training.synthetic.dates import draw_dates
from vlm.training.synthetic.prose import paragraph, phrase
from vlm.training.synthetic.spec import (
    LARGE,
    TIME_KINDS,
    ChartSpec,
    NumberFormat,
    draw_spec,
    draw_topic,
    number_near,
)
from vlm.training.synthetic.words import YEARS, Split, in_split, pseudo_word, words

Shape = tuple[int, int]
UNITS = (" million", " bn", " kg", " t", " km", " years", " points", " hours", "k", " USD")
MAX_TRIES = 2000


def named_or_dated(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw more labels than would stand side by side, names or dates."""
    large = max(shape) >= LARGE
    num_labels = random.randint(5, 20 if large else 9)
    num_series = 1 if random.random() < 0.75 else 2
    if split == "train" and random.random() < 0.55:
        label_kind, labels = draw_dates(random, num_labels)
        return draw_spec(random, split, difficulty, shape, label_kind=label_kind, labels=labels, num_series=num_series)
    label_kind = random.choice(("country", "product", "company", "sector", "person", "place", "invented"))
    return draw_spec(
        random, split, difficulty, shape, label_kind=label_kind, num_labels=min(num_labels, 14), num_series=num_series
    )


def signed(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw values of which some are negative; nobody counts below zero."""
    num_series = 1 if random.random() < 0.75 else 2
    spec = draw_spec(random, split, difficulty, shape, num_series=num_series)
    while spec.quantity == "count":
        spec = draw_spec(random, split, difficulty, shape, num_series=num_series)
    share = random.choice((0.2, 0.4, 0.6))
    rows = []
    for row in spec.numbers:
        row = [-number if random.random() < share else number for number in row]
        negative = random.randrange(len(row))
        row[negative], row[negative - 1] = -abs(row[negative]), abs(row[negative - 1])
        rows.append(row)
    if num_series == 1 and spec.label_kind not in TIME_KINDS and random.random() < 0.5:
        rows[0].sort(reverse=True)
    return replace(spec, numbers=tuple(map(tuple, rows)))


def over_decades(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw whole numbers of two or three digits and noughts, from two to five powers of ten."""
    spec = draw_spec(random, split, difficulty, shape, num_series=random.choice((1, 1, 2)))
    low = random.randint(1, 3)
    high = low + random.randint(2, 5 - low // 2)
    digits = random.choice((2, 3))

    def number(taken: list[float]) -> float:
        while True:
            value = 10 ** random.uniform(low, high)
            value = round(value, digits - 1 - math.floor(math.log10(value)))
            value = float(round(value))
            if value not in taken and in_split(f"{value:.0f}", split):
                return value

    rows = []
    for _ in spec.series_names:
        row: list[float] = []
        while len(row) < len(spec.labels):
            row.append(number(row))
        rows.append(tuple(row))
    thousands = random.choice((",", ",", " ", ""))
    prefix = "$" if spec.quantity == "amount" and random.random() < 0.2 else ""
    return replace(spec, numbers=tuple(rows), format=NumberFormat(thousands=thousands, prefix=prefix))


def over_time(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw walks of one to four series over years or dates."""
    large = max(shape) >= LARGE
    num_series = random.choice((1, 1, 2, 3, 4) if large else (1, 1, 2, 3))
    num_labels = random.randint(4, 14 if large else 8) if num_series == 1 else random.randint(4, 30 if large else 16)
    if split == "train" and random.random() < 0.4:
        label_kind, labels = draw_dates(random, min(num_labels, 20))
    else:
        label_kind, labels = "year", _years(random, split, num_labels, gaps=False)
    spec = draw_spec(random, split, difficulty, shape, label_kind=label_kind, labels=labels, num_series=num_series)
    return _walked(random, spec)


def lines_of_years(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw walks of several series over many years, at times with years left out."""
    large = max(shape) >= LARGE
    num_series = random.choice((2, 2, 3, 3, 4, 5) if large else (2, 2, 3))
    labels = _years(random, split, random.randint(5, 36 if large else 20), gaps=random.random() < 0.3)
    series_kind = random.choice(("country", "country", "place", "company", "group", "product"))
    spec = draw_spec(
        random,
        split,
        difficulty,
        shape,
        label_kind="year",
        labels=labels,
        num_series=num_series,
        series_kind=series_kind,
    )
    return _noted(random, _walked(random, spec), share=0.5)


def survey(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw answers in percent of several groups, which may stand under headings."""
    large = max(shape) >= LARGE
    label_kind = random.choice(("group", "group", "country", "sector", "person", "product", "company", "invented"))
    num_labels = random.randint(2, 10 if large else 6)
    num_series = random.choice((2, 2, 3, 3, 4))
    spec = draw_spec(
        random, split, difficulty, shape, label_kind=label_kind, num_labels=num_labels, num_series=num_series
    )
    columns: list[tuple[float, ...]] = []
    for _ in spec.labels:
        columns.append(_shares(random, split, num_series, columns))
    spec = replace(
        spec,
        quantity="rate",
        numbers=tuple(zip(*columns, strict=True)),
        format=NumberFormat(suffix="%" if random.random() < 0.6 else ""),
        unit_once=random.random() < 0.7,
        headings=_headings(random, split, spec.labels),
    )
    if spec.title and random.random() < 0.6:
        spec = replace(spec, title=phrase(random, split, random.randint(4, 10)))
    return _noted(random, spec, share=0.6)


def shares_of_a_hundred(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw the parts of a whole, in percent most often."""
    num_labels = random.randint(3, 6)
    spec = draw_spec(random, split, difficulty, shape, num_labels=num_labels, num_series=1)
    if random.random() < 0.7:
        numbers = _shares(random, split, num_labels, [])
        spec = replace(spec, numbers=(numbers,), format=NumberFormat(suffix="%"), quantity="rate")
    return spec


def two_measures(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw two numbers for each name: how high its point lies, and how far to the right."""
    kind = random.choice(("country", "country", "place", "company", "product", "sector", "invented"))
    num_labels = random.randint(4, 14 if max(shape) >= LARGE else 8)
    spec = draw_spec(random, split, difficulty, shape, label_kind=kind, num_labels=num_labels, num_series=1)
    tilt, high = random.choice((0.0, 0.7, -0.7)), random.choice((1, 10, 100, 1000))
    low, top = min(spec.numbers[0]), max(spec.numbers[0])
    heights = [(number - low) / (top - low) for number in spec.numbers[0]]
    trend = [1 - height if tilt < 0 else height for height in heights]
    across = tuple(high * ((1 - abs(tilt)) * random.random() + abs(tilt) * each) for each in trend)
    across_topic = draw_topic(random, split)[0]
    # Names in the order of a list, not of their values, as nothing is sorted in the plane.
    return replace(spec, across=across, across_topic=across_topic)


def tabulated(random: Random, split: Split, difficulty: float, shape: Shape) -> ChartSpec:
    """Draw two to five columns of values, headed by names or by years."""
    large = max(shape) >= LARGE
    num_series = random.randint(2, 5 if large else 3)
    num_labels = random.randint(3, 14 if large else 8)
    spec = draw_spec(random, split, difficulty, shape, num_labels=num_labels, num_series=num_series)
    if spec.label_kind != "year" and random.random() < 0.4:
        spec = replace(spec, series_names=_years(random, split, num_series, gaps=False))
    return _noted(random, spec, share=0.2)


def with_unit(random: Random, spec: ChartSpec) -> ChartSpec:
    """Return the contents with a unit behind the values, where they have none."""
    if spec.format.prefix or spec.format.suffix or spec.quantity == "count":
        return spec
    return replace(spec, format=replace(spec.format, suffix=random.choice(UNITS)))


def on_a_page(random: Random, spec: ChartSpec) -> ChartSpec:
    """Return the contents with the text of a page around them."""
    address = ".".join(pseudo_word(random, spec.split).lower() for _ in range(2))
    neighbours = tuple(paragraph(random, spec.split, 8) for _ in range(2))
    return replace(spec, neighbours=neighbours, address=f"{address}/{pseudo_word(random, spec.split).lower()}")


def _years(random: Random, split: Split, num_labels: int, *, gaps: bool) -> tuple[str, ...]:
    """Return years in a row, or with gaps of one to three years between them."""
    low, high = YEARS[split]
    steps = [random.choice((1, 1, 2, 3)) if gaps else 1 for _ in range(num_labels - 1)]
    while sum(steps) > high - low:
        steps.pop()
    year = random.randint(low, high - sum(steps))
    years = [year]
    for step in steps:
        years.append(years[-1] + step)
    return tuple(map(str, years))


def _walked(random: Random, spec: ChartSpec) -> ChartSpec:
    """Return the contents with smooth walks for values, each series at a level of its own."""
    highest = max(map(max, spec.numbers))
    low, high = 0.05 * highest, 0.95 * highest
    rows = []
    for _ in spec.series_names:
        level, drift = random.uniform(low, high), random.gauss(0, 0.5) * (high - low) / len(spec.labels)
        shake = random.choice((0.01, 0.03, 0.06)) * (high - low)
        row: list[float] = []
        for _ in spec.labels:
            # The highest of a single series is asked for; longer walks may come back to where they were.
            taken = row if len(spec.series_names) == 1 else []
            row.append(number_near(random, spec.split, spec.format, level, (low, high), taken))
            level = min(max(level + drift + random.gauss(0, shake), low), high)
        rows.append(tuple(row))
    return replace(spec, numbers=tuple(rows))


def _shares(random: Random, split: Split, num_parts: int, columns: list[tuple[float, ...]]) -> tuple[float, ...]:
    """Return different whole percentages of most of a hundred, none of which its series has in `columns` already."""
    for _ in range(MAX_TRIES):
        parts = [random.gammavariate(1.5, 1.0) for _ in range(num_parts)]
        total = random.randint(90, 100)
        shares = tuple(float(round(total * part / sum(parts))) for part in parts)
        fresh = all(share not in column for share, *column in zip(shares, *columns, strict=True))
        fresh = fresh and len({*shares}) == num_parts
        if fresh and min(shares) >= 3 and all(in_split(f"{share:.0f}", split) for share in shares):
            return shares
    raise DoesNotFit


def _headings(random: Random, split: Split, labels: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return headings for groups of two or three rows, or none."""
    if len(labels) < 4 or random.random() < 0.6:
        return ()
    headings, column = [], random.choice((0, 1))
    while column < len(labels) - 1:
        headings.append((labels[column], phrase(random, split, random.randint(1, 3))))
        column += random.randint(2, 3)
    return tuple(headings)


def _noted(random: Random, spec: ChartSpec, share: float) -> ChartSpec:
    """Return the contents, a `share` of them with notes below the chart and a sentence for a subtitle."""
    if random.random() > share:
        return spec
    split = spec.split
    notes = [paragraph(random, split, 1) for _ in range(random.choice((0, 1, 1, 2)))]
    publisher = " ".join(random.sample(words("source", split), 1)).upper()
    notes += [f"{pseudo_word(random, split).upper()} {publisher}"] if random.random() < 0.5 else []
    subtitle = phrase(random, split, random.randint(4, 14)) if random.random() < 0.7 else spec.subtitle
    logo = pseudo_word(random, split) if random.random() < 0.3 else ""
    return replace(spec, notes=tuple(notes), subtitle=subtitle, logo=logo)
