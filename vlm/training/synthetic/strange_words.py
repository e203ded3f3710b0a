"""Words and years that nobody has seen: those of a chart, changed so that print must be read and cannot be guessed.

A few hundred listed words are soon known by heart, and a reader that knows them completes what it should spell. So it
is with years: one that has seen none before 1970 reads 1942 as 1982.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

from vlm.training.synthetic.spec import TIME_KINDS, ChartSpec
from vlm.training.synthetic.words import SHARED_WORDS, WORD_KINDS, in_split, is_unwelcome, words

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONGEST = 14
SHIFTS = ((-300, -113), (63, 300))
"""By how many years those of training may be moved: to before the held-out ones, or to after their own."""
_WORD = re.compile(r"[A-Za-z]{3,}")
_YEAR = re.compile(r"(?<!\d)(?:19[7-9]|20[0-3])\d(?!\d)")


def with_strange_words(random: Random, spec: ChartSpec, share: float) -> ChartSpec:
    """Return `spec` with a share of its words changed, each to the same everywhere, and as often its years moved."""
    strange: dict[str, str] = {}
    moved = random.randint(*random.choice(SHIFTS)) if random.random() < share else 0

    def change(match: re.Match) -> str:
        word = match[0].lower()
        if word not in strange:
            changed = random.random() < share and word not in SHARED_WORDS
            strange[word] = _new_word(random, word, spec, {*strange, *strange.values()}) if changed else word
        return _in_case_of(match[0], strange[word])

    def dated_anew(text: str) -> str:
        return _YEAR.sub(lambda year: str(int(year[0]) + moved), text)

    def of(text: str) -> str:
        return dated_anew(_WORD.sub(change, text))

    dated = spec.label_kind in TIME_KINDS
    changed = replace(
        spec,
        labels=tuple(map(dated_anew if dated else of, spec.labels)),
        series_names=tuple(map(of, spec.series_names)),
        topic=of(spec.topic),
        title=of(spec.title),
        subtitle=of(spec.subtitle),
        headings=tuple((of(label), of(text)) for label, text in spec.headings) if not dated else spec.headings,
    )
    distinct = len({*changed.labels}) == len(spec.labels) and len({*changed.series_names}) == len(spec.series_names)
    return changed if distinct else spec


def _new_word(random: Random, word: str, spec: ChartSpec, taken: set[str]) -> str:
    """Return a word of the split that is not yet taken, made of `word`."""
    for _ in range(20):
        new = random.choice(_CHANGES)(random, word)[:LONGEST]
        if len(new) > 1 and new.isalpha() and new not in taken and in_split(new, spec.split) and not is_unwelcome(new):
            return new
    return word


def _spliced(random: Random, word: str) -> str:
    """Return how the word begins and how another one ends."""
    other = random.choice(random.choice(words(random.choice(WORD_KINDS), "train")).split()).lower()
    return word[: random.randint(1, len(word) - 1)] + other[random.randint(0, len(other) - 1) :]


def _mistyped(random: Random, word: str) -> str:
    """Return the word with one to three letters replaced, left out or added."""
    letters = list(word)
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(letters))
        letters[place] = random.choice(("", random.choice(LETTERS), letters[place] + random.choice(LETTERS)))
        letters = [letter for letter in letters if letter] or [random.choice(LETTERS)]
    return "".join(letters)


def _shuffled(random: Random, word: str) -> str:
    return "".join(random.sample(word, len(word)))


def _senseless(random: Random, word: str) -> str:
    return "".join(random.choice(LETTERS) for _ in range(random.randint(max(2, len(word) - 2), len(word) + 1)))


_CHANGES: tuple[Callable[[Random, str], str], ...] = (_spliced, _spliced, _mistyped, _mistyped, _shuffled, _senseless)


def _in_case_of(old: str, new: str) -> str:
    """Return `new` written in capitals, or with one, as `old` is."""
    if old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new
