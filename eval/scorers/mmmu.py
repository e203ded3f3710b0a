"""MMMU: questions with options are read as multiple choice, the others by a search for the answer in the reply.

A question has options or it is open; each rule takes both.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from eval.scorers import multiple_choice_ours
from eval.scorers.answer import short_answer
from eval.scorers.multiple_choice import lmms_eval_mmmu, mmmu_letter, vlmevalkit_letter
from eval.scorers.quantity import is_same_rounded
from eval.scorers.reasoning import without_tagged_reasoning
from eval.scorers.verdict import Case, Scorer, Verdict, right

ANNOUNCEMENTS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = frozenset(":,.!?;'")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def key_parts(reply: str) -> list[str]:
    """Return what follows the last announcement of each line, where that is shortest; the whole reply without any.

    Source: MMMU-Benchmark/MMMU, mmmu/utils/eval_utils.py, parse_open_response.
    """
    # The reply is in lower case by the time it would be split before capitals, so that only lines part it.
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    parts = []
    for number, line in enumerate(lines, start=1):
        announcements = (*ANNOUNCEMENTS, "=") if number == len(lines) else ANNOUNCEMENTS
        shortest = ""
        for tail in (line.rsplit(each, 1)[1].strip() for each in announcements if each in line):
            # An empty tail gives way to the next one, whatever its length.
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in TRIVIAL:
            parts.append(shortest)
    return parts or [reply]


def normalised(text: str) -> list[str | float]:
    """Return `text` as a number of two decimals, else in lower case; a single character with a blank on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [" " + text, text + " "] if len(text) == 1 else [text]


def candidates(reply: str) -> list[str | float]:
    """Return everything in a reply that may be its answer: its key parts, and the numbers in them."""
    parts = key_parts(reply)
    numbers = [number for part in parts for pattern in NUMBERS for number in pattern.findall(part)]
    return [each for part in [*parts, *numbers] for each in normalised(part)]


def any_matches(found: Iterable[str | float], targets: Iterable[str]) -> bool:
    """Whether a number found is an accepted answer, or a text found has one in it."""
    accepted = [each for target in targets for each in normalised(target)]
    return any(
        candidate in accepted
        if isinstance(candidate, float)
        else any(isinstance(each, str) and each in candidate for each in accepted)
        for candidate in found
    )


def _mmmu(
    read: Callable[[str, Mapping[str, str]], str | None],
    find: Callable[[str], Iterable[str | float]],
) -> Callable[[Case], Verdict]:
    """The rule that reads a letter by `read`, or an open answer by `find`."""

    def rule(case: Case) -> Verdict:
        if case.options:
            letter = read(case.prediction, dict(zip(case.letters, case.options, strict=True)))
            return right(letter in case.targets, letter) if letter else Verdict.unparsed()
        return right(any_matches(find(case.prediction), case.targets), key_parts(case.prediction)[-1])

    return rule


def _after_reasoning(reply: str) -> list[str | float]:
    return candidates(without_tagged_reasoning(reply))


def _characters(reply: str) -> str:
    """Return the first candidate as a text, which the harness then took for a list of candidates."""
    return str(_after_reasoning(reply)[0])


def vlmevalkit(case: Case) -> Verdict:
    """An open question becomes a choice between its answer and "Other Answers"; no judge is asked."""
    options = dict(zip(case.letters, case.options, strict=True))
    targets = case.targets
    if not options:
        options, targets = {"A": case.targets[0], "B": "Other Answers"}, ("A",)
    letter = vlmevalkit_letter(case.prediction, options)
    return right(letter in targets, letter) if letter else Verdict.unparsed()


def ours(case: Case) -> Verdict:
    """The option that the reply chose; of an open question its answer, equal as a number of two decimals or a text."""
    if case.options:
        return multiple_choice_ours.ours(case)
    answer = short_answer(case.prediction)
    if answer is None:
        return Verdict.unparsed()
    return right(any(is_same_rounded(answer, target, 2) for target in case.targets), answer)


VLMEVALKIT = "open-compass/VLMEvalKit: vlmeval/dataset/utils/multiple_choice.py, MMMU_preproc"
LMMS_EVAL = "EvolvingLMMs-Lab/lmms-eval: tasks/mmmu/utils.py"

SCORERS = (
    Scorer(family="mmmu", name="ours", version=2, source="Sightline", rule=ours),
    *(
        Scorer(family="mmmu", name=name, source=source, rule=rule)
        for name, rule, source in (
            ("mmmu_official", _mmmu(mmmu_letter, candidates), "MMMU-Benchmark/MMMU: mmmu/utils/eval_utils.py"),
            # The first until 0.7.2, the second from 0.7.3 on.
            ("lmms_eval_pipeline", _mmmu(lmms_eval_mmmu, _characters), LMMS_EVAL),
            ("lmms_eval_functions_without_flattening", _mmmu(lmms_eval_mmmu, _after_reasoning), LMMS_EVAL),
            ("vlmevalkit", vlmevalkit, VLMEVALKIT),
        )
    ),
)
