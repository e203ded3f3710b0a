"""What a scorer is given and what it says; this module knows no benchmark."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import NamedTuple

UNPARSED = "unparsed"
"""The reason of a reply in which no answer was found. It scores 0 and is counted apart, never guessed."""


class Verdict(NamedTuple):
    """How one reply was judged."""

    value: float
    """In [0, 1]."""
    extracted: str | None
    """The part of the reply that was compared; None when no such part was found."""
    reason: str | None = None
    """Why the value is 0 although nothing was compared: "unparsed", or "raises X" where the harness fails."""

    @classmethod
    def unparsed(cls) -> "Verdict":
        return cls(0.0, None, UNPARSED)


class OptionScore(NamedTuple):
    """How likely the model finds one option as its reply: what `VLM.score` gives of it."""

    logprob: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """A reply and what a rule may need to judge it. Fields that a benchmark lacks keep their defaults."""

    prediction: str
    targets: tuple[str, ...]
    """Accepted answers; for multiple choice the letter."""
    options: tuple[str, ...] = ()
    """Texts of A, B, C, ..."""
    numbered: bool = False
    """Whether the prompt showed the options as 1, 2, 3 (Meta's AI2D prompts) rather than A, B, C."""
    option_scores: tuple[OptionScore | None, ...] = ()
    """One an option, None for one that is not offered, for scoring by likelihood; empty when they were not measured."""
    category: str = ""
    question_type: str = ""
    answer_type: str = ""
    """"text", "integer", "float" or "list" (MathVista)."""
    precision: int | None = None
    """Decimals of a "float" answer (MathVista)."""
    year_flags: tuple[str, ...] = ("NO",)
    """"YES" for each answer that is a year (ChartQAPro)."""
    language: str = "en"
    """Two letters (MGSM)."""

    @classmethod
    def of(cls, prediction: str, targets: tuple[str, ...], loose: Mapping[str, object]) -> "Case":
        """Build a case from loose fields; those that no rule knows, and those that are None, are left out.

        So are those of another kind than a rule reads: people's own data may mean something else by such a name.
        """
        given = {name: value for name, value in loose.items() if name in _LOOSE and _is_of_its_kind(name, value)}
        for name in ("options", "option_scores", "year_flags"):
            if name in given:
                given[name] = (given[name],) if isinstance(given[name], str) else tuple(given[name])
        if "precision" in given:
            given["precision"] = _decimals(given["precision"])
        if "option_scores" in given:
            given["option_scores"] = tuple(score and OptionScore(*score) for score in given["option_scores"])
        return cls(prediction=prediction, targets=targets, **given)

    @property
    def letters(self) -> str:
        """The letters of the options: "ABCD" for four."""
        return "".join(chr(ord("A") + place) for place in range(len(self.options)))


_LOOSE = frozenset(field.name for field in fields(Case)) - {"prediction", "targets"}
_KINDS: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("category", "question_type", "answer_type", "language"), str),
    **dict.fromkeys(("options", "option_scores", "year_flags"), str | list | tuple),
    "numbered": bool,
    # Tables that lack some of the numbers hold the others as floats, and text files hold texts.
    "precision": int | float | str,
}
_MAX_DECIMALS = 100


def _is_of_its_kind(name: str, value: object) -> bool:
    return isinstance(value, _KINDS[name])


def _decimals(value: float | str) -> int | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and 0 <= number <= _MAX_DECIMALS else None


Rule = Callable[[Case], Verdict | None]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A named way of judging replies. Its version grows whenever a verdict may change."""

    family: str
    """The rules it is compared with: "chartqa", "multiple_choice", "anls", ..."""
    name: str
    """Whose rule it is, unique in its family."""
    version: int = 1
    source: str
    """Where the rule was read: repository and file, or "Sightline"."""
    rule: Rule

    def judge(self, prediction: str, targets: str | Sequence[str], /, **case) -> Verdict | None:
        """Return the verdict on a reply, or None where this rule does not apply, or no answer is known."""
        targets = (targets,) if isinstance(targets, str) else tuple(targets)
        return self.judge_case(Case.of(prediction, targets, case))

    def judge_case(self, case: Case) -> Verdict | None:
        """Return the verdict as `judge` does, on a case that several scorers judge."""
        return self.rule(case) if case.targets else None


def failing(*errors: type[Exception]) -> Callable[[Rule], Rule]:
    """Decorate the rule of a harness that fails on some replies, which then get no point and the failure by name."""

    def decorate(rule: Rule) -> Rule:
        @functools.wraps(rule)
        def judge(case: Case, **settings) -> Verdict | None:
            try:
                return rule(case, **settings)
            except errors as error:
                return Verdict(0.0, None, f"raises {type(error).__name__}")

        return judge

    return decorate


def right(is_right: bool, extracted: str | None) -> Verdict:
    """Return the verdict of a rule that knows only right and wrong."""
    return Verdict(1.0 if is_right else 0.0, extracted)
