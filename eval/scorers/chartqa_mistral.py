"""ChartQA as mistral-evals scores it, and lm-evaluation-harness after it: look for an answer, then compare loosely.

Source: mistralai/mistral-evals, eval/metrics.py; EleutherAI/lm-evaluation-harness, lm_eval/tasks/chartqa/utils.py.
The second is a copy of the first that drops end punctuation from words and knows one accepted answer.
"""

import re
from dataclasses import replace
from string import punctuation

from eval.scorers.verdict import Case, Scorer, Verdict, failing, right

TOLERANCE = 0.05


def answer_line(reply: str) -> str:
    """Return the first line with text after the last "answer:" in any case, without the characters `*_[]()`.

    The text "" stands for a reply without such a line.
    """
    reply = re.sub(r"([aA]nswer)\**:\**", r"\1:", reply)
    marker = "answer:"
    # The place is sought in the lower-cased reply, whose length can differ, and used in the reply itself.
    place = reply.lower().rfind(marker)
    if place < 0:
        return ""
    lines = (line.strip() for line in reply[place + len(marker) :].split("\n"))
    return re.sub(r"[*_\[\]()]", "", next((line for line in lines if line), ""))


def loose_match(answer: str, targets: tuple[str, ...], *, drops_end_punctuation: bool) -> bool:
    """Whether `answer` equals one of `targets` as a number, a percentage or fraction, a first letter, or a text."""
    answer = _cleaned(answer)
    value, is_percent = _number(answer)
    matches = []
    for target in map(_cleaned, targets):
        scale, target_is_percent = _number(target)
        if value is not None and scale is not None:
            pairs = [(value, scale)]
            if is_percent or target_is_percent:
                pairs += [(value / 100 if is_percent else value, scale)]
                pairs += [(value, scale / 100 if target_is_percent else scale)]
            matches.append(any(_near(*pair) for pair in pairs))
        elif len(target) == 1 and target.isalpha() and answer:
            matches.append(answer[0].lower() == target.lower())
        else:
            text = answer.rstrip(punctuation) if drops_end_punctuation else answer
            matches.append(text.lower() == target.lower())
    return max(matches)


def _cleaned(text: str) -> str:
    """Drop the quotes around a text without digits; from one with digits end punctuation, commas and dollars."""
    if any(character.isdigit() for character in text):
        return without_end_punctuation(text).replace(",", "").replace("$", "")
    return unquoted(text)


def without_end_punctuation(text: str) -> str:
    """Return `text` without blanks and punctuation at its end, but for a percent sign."""
    while text and text[-1] != "%" and (text[-1] in punctuation or text[-1].isspace()):
        text = text[:-1]
    return text


def unquoted(text: str) -> str:
    """Return `text` without its first and last character where both are the same kind of quotation mark."""
    # A lone mark is its own first and last character, and becomes the empty text, as in the harness.
    return text[1:-1] if text[:1] in ("'", '"') and text.endswith(text[0]) else text


def _number(text: str) -> tuple[float | None, bool]:
    """Return the number a text is (45 for "45%") and whether it ends in a percent sign."""
    text = text.strip()
    try:
        return float(text.rstrip("%")), text.endswith("%")
    except ValueError:
        return None, False


def _near(value: float, scale: float) -> bool:
    return abs(value - scale) / max(abs(scale), 1e-10) <= TOLERANCE


def stands_anywhere(reply: str, targets: tuple[str, ...]) -> bool:
    """Whether an accepted answer occurs in the reply: a number as a substring, a word after "is", "was" and so on.

    Raises: OverflowError for an answer that reads as infinity, as the harnesses do.
    """
    words = [
        pattern.format(target).lower()
        for target in targets
        for pattern in ("is {}", "was {}", " {}.", "are {}", "\n\n{}")
    ]
    for target in targets:
        try:
            number = float(target)
            number = int(number) if int(number) == number else number
        except ValueError:
            # The words are lower-cased and the reply is not: "It was Brazil." misses "was brazil".
            if any(word in reply for word in words):
                return True
        else:
            if format(number, ",") in reply or str(number) in reply:
                return True
    return False


def relaxed(case: Case) -> Verdict:
    """The reply as it is."""
    return right(loose_match(case.prediction, case.targets, drops_end_punctuation=False), case.prediction)


def explicit(case: Case, *, drops_end_punctuation: bool = False) -> Verdict:
    """What follows the last "answer:"; without one, no point."""
    answer = answer_line(case.prediction)
    if not answer:
        return Verdict.unparsed()
    return right(loose_match(answer, case.targets, drops_end_punctuation=drops_end_punctuation), answer)


@failing(OverflowError)
def anywhere(case: Case, *, drops_end_punctuation: bool = False) -> Verdict:
    """What follows the last "answer:"; without one, an accepted answer anywhere in the reply."""
    verdict = explicit(case, drops_end_punctuation=drops_end_punctuation)
    if verdict.extracted is not None:
        return verdict
    return right(stands_anywhere(case.prediction, case.targets), case.prediction)


def lm_eval_exact_match(case: Case) -> Verdict:
    """The last line's text after "Final Answer: ", equal but for case and one end period."""
    found = re.search(r"Final Answer: (.+)$", case.prediction, re.IGNORECASE)
    if found is None:
        return Verdict.unparsed()
    answer = found.group(1).strip()
    return right(answer.lower().removesuffix(".") == case.targets[0].strip().lower(), answer)


def lm_eval_relaxed(case: Case) -> Verdict:
    """`explicit` against the first accepted answer, end punctuation of words dropped."""
    return explicit(_first_target(case), drops_end_punctuation=True)


def lm_eval_anywhere(case: Case) -> Verdict:
    """`anywhere` with the first accepted answer, end punctuation of words dropped."""
    return anywhere(_first_target(case), drops_end_punctuation=True)


def _first_target(case: Case) -> Case:
    return replace(case, targets=case.targets[:1])


MISTRAL = "mistralai/mistral-evals: eval/metrics.py"
LM_EVAL = "EleutherAI/lm-evaluation-harness: tasks/chartqa/utils.py"

SCORERS = tuple(
    Scorer(family="chartqa", name=name, source=source, rule=rule)
    for name, rule, source in (
        ("mistral_relaxed", relaxed, MISTRAL),
        ("mistral_explicit", explicit, MISTRAL),
        ("mistral_anywhere", anywhere, MISTRAL),
        ("lm_eval_exact_match", lm_eval_exact_match, LM_EVAL),
        ("lm_eval_relaxed_accuracy", lm_eval_relaxed, LM_EVAL),
        ("lm_eval_anywhere_accuracy", lm_eval_anywhere, LM_EVAL),
    )
)
