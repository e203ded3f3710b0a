"""Names of labels and series that a chart might have but does not."""

import re
from random import Random
from string import ascii_lowercase, digits

from vlm.training.synthetic.renderer import Chart
from vlm.training.synthetic.spec import TIME_KINDS
from vlm.training.synthetic.words import YEARS, Split, in_split, months, phrase_in_split, pseudo_word, words

LISTS = ("country", "place", "product", "sector", "person", "group", "company")
SHARE_NEAR = 0.4
"""Of the names that are one of the chart's but for a letter or two."""
MAX_TRIES = 40


def absent_name(random: Random, chart: Chart, name: str, kind: str) -> str | None:
    """Return a name of the split, of the kind of `name`, that stands nowhere on the chart; None where none is found."""
    split = chart.spec.split
    printed = "".join(character.char for character in chart.characters).casefold()
    names = [_bare(each) for each in (*chart.spec.labels, *chart.spec.series_names, chart.title) if each]
    for _ in range(MAX_TRIES):
        found = _another(random, name, kind, split)
        bare = _bare(found)
        is_shown = bare in printed or any(bare in each or each in bare for each in names)
        if bare and not is_shown and not (kind == "year" and _on_the_line(chart, found)):
            return found
    return None


def _on_the_line(chart: Chart, year: str) -> bool:
    """Return whether a line leads over a year that has no point: its value could be read off all the same."""
    labels = chart.spec.labels
    return chart.kind in ("line", "area") and min(labels) < year < max(labels)


def _bare(name: str) -> str:
    """Return a name as it stands among printed characters: without spaces, capitals or not."""
    return name.replace(" ", "").casefold()


def _another(random: Random, name: str, kind: str, split: Split) -> str:
    """Return another name, which may stand on the chart all the same; "" where it came out wrong."""
    if kind == "year":
        return _another_year(random, name, split)
    if kind in TIME_KINDS and re.search(r"\d", name):
        return _another_date(random, name, split)
    if kind == "month":
        names = months(split)
        return random.choice(names)[: None if name in names else 3]
    draw = random.random()
    if draw < SHARE_NEAR:
        return near_miss(random, name, split)
    if draw < 0.8 and kind in LISTS:
        return random.choice(words(kind, split))
    return random.choice(words(random.choice(LISTS), split)) if draw < 0.9 else pseudo_word(random, split)


def _another_year(random: Random, label: str, split: Split) -> str:
    """Return a year printed as `label` is ("2014", "2014/15", "'14"), near it as often as anywhere in the split."""
    low, high = YEARS[split]
    numeral = re.search(r"\d+", label)[0]
    year = int(numeral) if len(numeral) == 4 else low + (int(numeral) - low) % 100
    year = year + random.randint(-6, 6) if random.random() < 0.5 else random.randint(low, high)
    if not low <= year <= high:
        return ""
    if "/" in label:
        return f"{year}/{(year + 1) % 100:02d}"
    return str(year) if len(numeral) == 4 else f"'{year % 100:02d}"


def _another_date(random: Random, label: str, split: Split) -> str:
    """Return a date such as "Q2/21" with another year, quarter or day, or "" where that is not of the split."""
    numerals = list(re.finditer(r"\d+", label))
    # Of "2014-03" the year, for there is no month 17.
    numeral = numerals[0] if "-" in label else random.choice(numerals)
    alphabet = "1234" if label[: numeral.start()].endswith("Q") else digits
    found = changed(random, label, [numeral.end() - 1], alphabet)
    low, high = YEARS[split]
    is_good = [
        low <= int(each) <= high if len(each) == 4 else in_split(each, split) for each in re.findall(r"\d+", found)
    ]
    return found if all(is_good) else ""


def near_miss(random: Random, name: str, split: Split) -> str:
    """Return `name` with two letters changed (one of a short name), or "" where that is no word of the split."""
    places = [place for place, char in enumerate(name) if char.isalpha()]
    if not places:
        return ""
    found = changed(random, name, random.sample(places, 2 if len(places) > 4 else 1), ascii_lowercase)
    return found if found != name and phrase_in_split(found, split) else ""


def changed(random: Random, text: str, places: list[int], alphabet: str) -> str:
    """Return `text` with other characters of an alphabet in `places`, each in the case of the one it takes over."""
    chars = list(text)
    for place in places:
        other = random.choice([char for char in alphabet if char != chars[place].lower()])
        chars[place] = other.upper() if chars[place].isupper() else other
    return "".join(chars)
