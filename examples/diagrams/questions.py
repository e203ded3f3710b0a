"""What is asked about a diagram: about its words, and about the letters that AI2D puts in their places."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from diagrams.sheet import Sheet


class Asked(NamedTuple):
    """A question with its answer and at least three wrong ones; `lettered` when it speaks of letters."""

    question: str
    answer: str
    others: Sequence[str]
    lettered: bool = False


@dataclass(frozen=True, kw_only=True)
class Diagram:
    """A drawn sheet, the letter for each of its labels, and its questions."""

    sheet: Sheet
    letters: Mapping[str, str]
    asked: Sequence[Asked]


def letters_for(sheet: Sheet, random: Random) -> dict[str, str]:
    """Return a letter for each label, in a random order."""
    labels = list(sheet.boxes)
    random.shuffle(labels)
    return dict(zip(labels, "ABCDEFGHIJKLMNOP", strict=False))


def without(names: Iterable[str], *excluded: str) -> list[str]:
    return [name for name in names if name not in excluded]


def which_letter(question: str, label: str, letters: Mapping[str, str]) -> Asked:
    """Return a question whose options are letters of the diagram."""
    return Asked(question, letters[label], without(letters.values(), letters[label]), True)


def about_parts(
    sheet: Sheet, random: Random, whole: str, roles: Mapping[str, str], absent: Sequence[str] = ()
) -> Diagram:
    """Return the diagram of something with labelled parts.

    roles: what a part does, as in "Which part {makes the pollen}?". absent: parts of other things.
    """
    letters = letters_for(sheet, random)
    labels = random.sample(list(letters), len(letters))
    asked = [which_letter(f"Which letter marks the {label}?", label, letters) for label in labels[:2]]
    asked.append(Asked(f"What does the letter {letters[labels[2]]} mark?", labels[2], without(labels, labels[2]), True))
    for label in random.sample(list(roles), 2):
        asked.append(Asked(f"Which part of {whole} {roles[label]}?", label, without(labels, label)))
    missing = random.choice(absent)
    asked.append(Asked("Which of these is not labelled in the diagram?", missing, labels))
    return Diagram(sheet=sheet, letters=letters, asked=asked)


def about_cycle(sheet: Sheet, random: Random, stages: Sequence[str], what: str = "stage") -> Diagram:
    """Return the diagram of stages that follow one another, the first after the last."""
    letters = letters_for(sheet, random)
    first, second, third, fourth = random.sample(range(len(stages)), 4)
    after, before = stages[(first + 1) % len(stages)], stages[second - 1]
    next_but_one = stages[(fourth + 1) % len(stages)]
    counts = [str(count) for count in range(3, 10) if count != len(stages)]
    asked = [
        Asked(f"Which {what} comes directly after the {stages[first]}?", after, without(stages, after)),
        Asked(f"Which {what} comes just before the {stages[second]}?", before, without(stages, before)),
        Asked(f"How many {what}s are there in the cycle?", str(len(stages)), counts),
        which_letter(f"Which letter stands for the {stages[third]}?", stages[third], letters),
        Asked(
            f"Which {what} follows the one at the letter {letters[stages[fourth]]}?",
            next_but_one,
            without(stages, next_but_one),
            True,
        ),
    ]
    return Diagram(sheet=sheet, letters=letters, asked=asked)


def about_web(sheet: Sheet, random: Random, eats: Mapping[str, Sequence[str]]) -> Diagram:
    """Return the diagram of who eats whom, with an arrow from what is eaten to who eats it."""
    letters = letters_for(sheet, random)
    names = list(letters)
    prey = {name: list(eats.get(name, ())) for name in names}
    eaters = {name: [other for other in names if name in prey[other]] for name in names}
    producers, top = ([name for name in names if not table[name]] for table in (prey, eaters))
    eater, eaten = (random.choice([name for name in names if table[name]]) for table in (prey, eaters))
    verb, table = random.choice((("lead to", prey), ("start from", eaters)))
    counted = random.choice([name for name in names if table[name]])
    count = str(len(table[counted]))
    choosy = random.choice([name for name in names if len(prey[name]) == 1])
    food = prey[choosy][0]
    asked = [
        _one_of(f"What does the {eater} eat here?", prey[eater], without(names, eater), random),
        _one_of(f"Which of these eats the {eaten}?", eaters[eaten], without(names, eaten), random),
        _one_of("Which of these is a producer?", producers, names, random),
        _one_of("Which of these is eaten by none of the others?", top, names, random),
        Asked(f"How many arrows {verb} the {counted}?", count, without("12345", count)),
        Asked(
            "Which letter stands for a producer?",
            letters[random.choice(producers)],
            [letters[name] for name in without(names, *producers)],
            True,
        ),
        Asked(
            f"Which letter stands for what {letters[choosy]} eats?",
            letters[food],
            [letters[name] for name in without(names, food, choosy)],
            True,
        ),
    ]
    return Diagram(sheet=sheet, letters=letters, asked=asked)


def _one_of(question: str, right: Sequence[str], names: Sequence[str], random: Random) -> Asked:
    """Return a question that has several right answers, of which one is offered."""
    return Asked(question, random.choice(list(right)), without(names, *right))
