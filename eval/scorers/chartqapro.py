"""ChartQAPro: lists element by element, years exact where they are flagged, numbers within 5 %, texts by ANLS.

Source: vis-nlp/ChartQAPro, evaluate_predictions.py; EvolvingLMMs-Lab/lmms-eval, tasks/chartqapro/utils.py, which
alone compares true-or-false and multiple-choice questions exactly, as the paper means it.
"""

import re
from collections.abc import Sequence

from eval.scorers.anls import above_half, folded
from eval.scorers.python_list import python_list
from eval.scorers.reasoning import without_reasoning
from eval.scorers.verdict import Case, Scorer, Verdict, failing

TOLERANCE = 0.05
EXACT_TYPES = frozenset({"Fact Checking", "Multi Choice"})
WORD_WITHOUT_QUOTES = re.compile(r"(?<!['\w])(\w[^,]*?)(?!['\w])")


def elements(text: str) -> list[str]:
    """Return the elements of a text that is a list, else the text alone; also of an empty list."""
    return [str(element).strip(" '") for element in python_list(text) or []] or [text]


def gold_elements(text: str) -> list[str]:
    """Return the elements of a gold list, whose words may lack their quotation marks, else the text alone."""
    found = re.match(r"^\[(.*)\]$", text.strip())
    if found is not None:
        quoted = python_list("[" + WORD_WITHOUT_QUOTES.sub(r"'\1'", found.group(1)) + "]")
        if quoted:
            return [str(element).strip(" '") for element in quoted]
    return elements(text)


def element_score(answer: str, target: str) -> float:
    """Return 1 within 5 % of a number, without regard to percent signs; ANLS, one half excluded, of texts."""
    answer, target = answer.strip().strip("%").strip(), target.strip().strip("%").strip()
    value, scale = _number(answer), _number(target)
    if value is not None and scale is not None:
        is_near = value == 0 if scale == 0 else abs(value - scale) / abs(scale) <= TOLERANCE
        return float(is_near)
    answer, target = folded(answer), folded(target)
    length = max(len(answer.upper()), len(target.upper()))
    return above_half(answer, target, length) if length else 1.0


def _number(text: str) -> float | None:
    try:
        return float(text.strip().strip("%"))
    except ValueError:
        return None


def list_score(answer: str, target: str, year_flags: Sequence[str], *, exact: bool) -> float:
    """Return the mean score of the elements, place by place; a missing or an extra element scores 0."""
    answers, targets = elements(answer), gold_elements(target)
    flags = year_flags if len(year_flags) >= len(targets) else list(year_flags) * len(targets)
    scores = []
    for place in range(min(len(answers), len(targets))):
        if flags[place].upper() == "YES" or exact:
            scores.append(float(targets[place].strip().lower() == answers[place].strip().lower()))
        else:
            scores.append(element_score(answers[place], targets[place]))
    return sum(scores) / max(len(answers), len(targets))


@failing(IndexError)
def official(case: Case) -> Verdict:
    """Works out which questions want an exact match, and then forgets it; VLMEvalKit's copy does too."""
    answer, target = (text.strip(".").strip("\n") for text in (case.prediction, case.targets[-1]))
    return Verdict(list_score(answer, target, _flags(case), exact=False), answer)


def lmms_eval(case: Case) -> Verdict:
    answer = without_reasoning(case.prediction).strip(".").strip("\n")
    target = case.targets[-1].strip().strip(".").strip("\n")
    return Verdict(list_score(answer, target, _flags(case) or ("NO",), exact=case.question_type in EXACT_TYPES), answer)


def _flags(case: Case) -> tuple[str, ...]:
    return case.year_flags[-1:] if case.question_type == "Conversational" else case.year_flags


SCORERS = tuple(
    Scorer(family="chartqapro", name=name, source=source, rule=rule)
    for name, rule, source in (
        ("official", official, "vis-nlp/ChartQAPro: evaluate_predictions.py"),
        ("vlmevalkit", official, "open-compass/VLMEvalKit: vlmeval/dataset/utils/chartqapro.py"),
        ("lmms_eval", lmms_eval, "EvolvingLMMs-Lab/lmms-eval: tasks/chartqapro/utils.py"),
    )
)
