"""Dates as charts print them below their bars: months, quarters, days.

Only for training: held-out charts have no months, and quarters and days go with them.
"""

import re
from random import Random

from vlm.training.synthetic.words import MONTHS, YEARS, in_split

NAMES = MONTHS.split("|")
MONTH_FORMS = ("{short} {year}", "{short} '{tail}", "{short} {tail}", "{long} {year}", "{year}-{month:02d}")
QUARTER_FORMS = ("Q{quarter} {year}", "Q{quarter} '{tail}", "{year} Q{quarter}", "Q{quarter}/{tail}")
DAY_FORMS = ("{day} {short}", "{short} {day}", "{day} {long}", "{short} {day}, {year}")


def draw_dates(random: Random, num_labels: int) -> tuple[str, tuple[str, ...]]:
    """Return what the labels are ("month", "quarter" or "day") and `num_labels` dates in a row, of one form."""
    kind = random.choices(("month", "quarter", "day"), weights=(5, 3, 2))[0]
    draw = {"month": _months, "quarter": _quarters, "day": _days}[kind]
    while True:
        labels = draw(random, num_labels)
        numerals = re.findall(r"\b\d\d\b", " ".join(labels))
        if len({*labels}) == num_labels and all(in_split(numeral, "train") for numeral in numerals):
            return kind, labels


def _months(random: Random, num_labels: int) -> tuple[str, ...]:
    form, step = random.choice(MONTH_FORMS), random.choice((1, 1, 1, 3, 6))
    first = random.randrange(12)
    year = _year(random, (first + step * num_labels) // 12)
    places = [first + step * i for i in range(num_labels)]
    return tuple(_date(form, year + place // 12, place % 12) for place in places)


def _quarters(random: Random, num_labels: int) -> tuple[str, ...]:
    form, first = random.choice(QUARTER_FORMS), random.randrange(4)
    year = _year(random, (first + num_labels) // 4)
    places = [first + i for i in range(num_labels)]
    return tuple(_date(form, year + place // 4, place % 4 * 3) for place in places)


def _days(random: Random, num_labels: int) -> tuple[str, ...]:
    """Return days of months in a row, those whose numeral is of the split, in their order."""
    form, first = random.choice(DAY_FORMS), random.randrange(10)
    days = [day for day in range(1, 29) if in_split(str(day), "train")]
    num_months = random.randint(1, 3)
    places = sorted(random.sample([(month, day) for month in range(num_months) for day in days], num_labels))
    year = random.randint(2000, YEARS["train"][1])
    return tuple(_date(form, year, first + month, day) for month, day in places)


def _year(random: Random, num_further: int) -> int:
    """Return the first of years of the split, so many more of which follow it."""
    return random.randint(max(YEARS["train"][0], 1990), YEARS["train"][1] - num_further)


def _date(form: str, year: int, month: int, day: int = 1) -> str:
    """Return a date in one of the forms; `month` counts from 0."""
    name = NAMES[month % 12]
    return form.format(
        short=name[:3], long=name, year=year, tail=f"{year % 100:02d}", month=month + 1, quarter=month // 3 + 1, day=day
    )
