"""Multiple choice as we read it: letter, number, text or box, restricted to the item's own options, never a guess.

A reply is read where it marks its answer, else line by line, else as a sentence. Where two readings of one rank
disagree, or none is possible, the reply is "unparsed".

Diagrams have labels, and many an AI2D question has these as its options: A) c, B) D, C) b. A bare "D" is then the
letter of an option, as it was asked for, and "the one labelled D" is the option whose text is D.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from eval.scorers.answer import bare_text, marked_answer
from eval.scorers.reasoning import without_reasoning
from eval.scorers.verdict import Case, Scorer, Verdict, right


class Choice(NamedTuple):
    """The option that a reply chose."""

    place: int
    """Of the option, from 0."""
    route: Literal["letter", "number", "text"]
    """How it was named."""


_OPEN, _CLOSE = r"[\s(\[{*_`\"'“]*", r"[\s)\]}*_`\"'”]*"
_LABEL = r"(?P<label>[A-Za-z]|\d{1,2})"
LABELLED_LINE = re.compile(
    rf"{_OPEN}(?:(?:option|choice|answer|letter|number)\s+){{0,2}}{_OPEN}{_LABEL}{_CLOSE}"
    rf"(?:(?P<mark>[.:,;–-])[.:,;–-]*{_CLOSE}(?P<rest>.*))?",
    re.IGNORECASE,
)
"""A label alone, or before punctuation and a text: "B", "(B)", "option B.", "**B**", "2: leaf"."""
BRACKETED_LINE = re.compile(rf"[\s*_]*[(\[]?{_LABEL}(?P<mark>[)\]])[\s*_]*(?P<rest>.+)")
"""A label in brackets before a text: "(B) leaf", "B) leaf"."""
BEGUN_LINE = re.compile(r"(?P<label>[A-Z])(?P<mark> )\s*(?P<rest>[A-Z(].*)")
"""A capital before a new sentence: "B The wing is broad"."""
NAMED_OPTION = re.compile(
    r"\((?P<bracketed>[A-Z]|\d{1,2})\)|\b(?:option|choice|letter)\s+(?:number\s+)?(?P<word>[A-Z]|\d{1,2})\b"
)
LONE_CAPITAL = re.compile(
    r"(?<![\w'’-])(?!A\s(?!(?:is|was|would|seems|shows|and|or|nor|but|because|since|as|not)\b)[a-z])"
    r"(?!I['’\s]\s?[a-z])[A-Z](?![\w'’-])"
)
"""A capital that is a word, but for the article "A" and the pronoun "I"."""
DENIED = re.compile(r"(?:\bnot|n['’]t|\bneither|\bnor)\s+((?:\S+\s*){1,3})", re.IGNORECASE)
"""What follows a denial: an option there was not chosen."""
DIAGRAM_LABEL = re.compile(r"\b(?:labell?ed|marked|label|part|point)\s+(?:as\s+|with\s+)?[\"'“(]?(\w)\b", re.IGNORECASE)


def read_choice(reply: str, options: Sequence[str], *, numbered: bool = False) -> Choice | None:
    """Return the option that `reply` chose, None when it names none or more than one.

    numbered: the prompt showed the options as 1, 2, 3. A number then comes before a text, else a text before a number.
    """
    reader = _Reader(options, numbered)
    marked = marked_answer(reply)
    if marked is not None:
        return reader.line(marked) or reader.sentence(marked)
    lines = [line.strip() for line in without_reasoning(reply).split("\n") if line.strip()]
    choices = [reader.line(line) for line in lines]
    if (chosen := _only(choice for choice in choices if choice)) is not None:
        return chosen
    # Several labelled lines are the options gone through, or echoed: then only the other lines can answer.
    return reader.sentence("\n".join(line for line, choice in zip(lines, choices, strict=True) if choice is None))


def _only(choices: Iterable[Choice]) -> Choice | None:
    """Return the option that all of `choices` are, None when there are several or none."""
    by_place = {choice.place: choice for choice in choices}
    return next(iter(by_place.values())) if len(by_place) == 1 else None


class _Reader:
    """Reads lines and sentences in the light of one item's options."""

    def __init__(self, options: Sequence[str], numbered: bool):
        self.numbered = numbered
        self.texts = [bare_text(option).casefold() for option in options]
        self.are_labels = all(len(text) == 1 for text in self.texts)

    def line(self, line: str) -> Choice | None:
        """Return what a whole line names: by a label, alone or with its text, or by the text of one option."""
        text = bare_text(line).casefold()
        readings = {
            "text": _only(Choice(place, "text") for place, each in enumerate(self.texts) if each and each == text)
        }
        if (labelled := self._labelled(line)) is not None:
            readings[labelled.route] = labelled
        order = ("number", "text", "letter") if self.numbered else ("letter", "text", "number")
        return next((readings[route] for route in order if readings.get(route)), None)

    def sentence(self, text: str) -> Choice | None:
        """Return the only option that a text names, None when it denies one."""
        if any(self._named(denied) is not None for denied in DENIED.findall(text)):
            return None
        return self._named(text)

    def _named(self, text: str) -> Choice | None:
        """Return the only option that a text names: as "(B)" or "option B", by a lone capital, or by its text."""
        if self.are_labels and (labels := {label.casefold() for label in DIAGRAM_LABEL.findall(text)}):
            return _only(Choice(place, "text") for place, each in enumerate(self.texts) if each in labels)
        by_text = [Choice(place, "text") for place in self._texts_within(text)]
        if named := self._options(
            found["bracketed"] or found["word"]
            for found in NAMED_OPTION.finditer(text)
            if self.numbered or not (found["bracketed"] or "").isdecimal()
        ):
            return _only(named)
        if capitals := self._options(LONE_CAPITAL.findall(text)):
            # "B, the stem" contradicts itself where the stem is C; where options are letters, a capital may be either.
            return _only([*capitals, *by_text, *self._options_with_text(capitals)])
        return _only(by_text)

    def _labelled(self, line: str) -> Choice | None:
        """Return the option whose label begins the line, unless what follows is another option, or prose."""
        found = LABELLED_LINE.fullmatch(line) or BRACKETED_LINE.fullmatch(line) or BEGUN_LINE.fullmatch(line)
        choice = self._option(found["label"].upper()) if found else None
        if choice is None:
            return None
        rest, own = bare_text(found["rest"] or "").casefold(), self.texts[choice.place]
        if not rest or rest == own or (own and rest.startswith(own + " ")):
            return choice
        is_other = rest in self.texts or self._option(rest.upper()) is not None
        if found["mark"] in ",;":
            # "A, B" and "A, then B" go on with another option; "A, not B" does not.
            others = self._options(LONE_CAPITAL.findall(DENIED.sub("", found["rest"])))
            is_other = is_other or any(other.place != choice.place for other in others)
        # "1. Look at the roots" begins a list of thoughts as likely as it names an option; so does a small letter.
        return choice if found["label"].isupper() and not is_other else None

    def _options(self, names: Iterable[str]) -> list[Choice]:
        return [choice for choice in map(self._option, names) if choice is not None]

    def _option(self, name: str) -> Choice | None:
        """Return the option whose letter or number is `name`."""
        if name.isdecimal():
            place, route = int(name) - 1, "number"
        else:
            place, route = ord(name) - ord("A") if len(name) == 1 else -1, "letter"
        return Choice(place, route) if 0 <= place < len(self.texts) else None

    def _options_with_text(self, letters: Iterable[Choice]) -> list[Choice]:
        """Return the options whose texts are these letters."""
        names = {chr(ord("a") + letter.place) for letter in letters}
        return [Choice(place, "text") for place, each in enumerate(self.texts) if each in names]

    def _texts_within(self, text: str) -> list[int]:
        """Return the places of the options whose texts occur as whole words, not inside a longer one that occurs."""
        words, found = bare_text(text).casefold(), []
        for place in sorted(range(len(self.texts)), key=lambda place: -len(self.texts[place])):
            pattern = rf"(?<!\w){re.escape(self.texts[place])}(?!\w)"
            if len(self.texts[place]) > 1 and re.search(pattern, words):
                found.append(place)
                words = re.sub(pattern, " ", words)
        return found


def ours(case: Case) -> Verdict | None:
    """The letter of the option that the reply chose."""
    if not case.options:
        return None
    choice = read_choice(case.prediction, case.options, numbered=case.numbered)
    if choice is None:
        return Verdict.unparsed()
    letter = case.letters[choice.place]
    return right(letter in case.targets, letter)


SCORERS = (Scorer(family="multiple_choice", name="ours", version=2, source="Sightline", rule=ours),)
