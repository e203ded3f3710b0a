"""MathVista: an extracted answer, brought to the type of the gold answer, equal to it as a text.

The official harness has GPT-4 extract the answer; a rule cannot stand for that. `mathvista_official` here is what its
code does without a model: replies that are an option, a number of the wanted type, or say 'The answer is "..."'.
Others are "unparsed". `ours` extracts the reply's own answer instead. Options are compared by their texts; the target
of a question with options is its letter, as everywhere else.
"""

import re

from eval.scorers import multiple_choice_ours
from eval.scorers.answer import short_answer
from eval.scorers.chartqa_ours import list_elements
from eval.scorers.edit_distance import edit_distance
from eval.scorers.multiple_choice import vlmevalkit_letter
from eval.scorers.quantity import is_same_rounded
from eval.scorers.verdict import Case, Scorer, Verdict, right


def quick_extraction(case: Case) -> str | None:
    """Return the answer where MathVista's code finds it without asking a model, else None.

    Source: lupantech/MathVista, evaluation/extract_answer.py, with quick_extract.
    """
    reply = case.prediction
    if not reply or (case.options and reply in case.options):
        return reply
    for answer_type, read in (("integer", int), ("float", float)):
        if case.answer_type == answer_type:
            try:
                return str(read(reply))
            except ValueError:
                pass
    found = re.search(r'The answer is "(.*)"\.', reply)
    return found.group(1) if found else None


def normalised(extraction: str, case: Case) -> str | None:
    """Return an extracted answer as the gold answer would be written.

    Source: lupantech/MathVista, evaluation/calculate_score.py, normalize_extracted_answer.
    """
    if case.options:
        extraction = extraction.strip()
        bracketed = re.findall(r"\(([a-zA-Z])\)", extraction)
        letter = bracketed[0].upper() if bracketed else extraction
        if len(letter) == 1 and letter in case.letters:
            return case.options[case.letters.index(letter)]
        return min(case.options, key=lambda option: edit_distance(letter, option))
    try:
        if case.answer_type == "integer":
            return str(int(float(extraction)))
        if case.answer_type == "float":
            return str(round(float(extraction), case.precision))
    except (ValueError, OverflowError):
        return None
    return extraction


def official(case: Case) -> Verdict:
    """What its code extracts without a model; of options the nearest in letters."""
    extraction = quick_extraction(case)
    if extraction is None:
        return Verdict.unparsed()
    answer = normalised(extraction, case)
    return right(answer in _gold_texts(case), answer)


def _gold_texts(case: Case) -> list[str]:
    if not case.options:
        return list(case.targets)
    return [case.options[case.letters.index(target)] for target in case.targets if target in list(case.letters)]


def vlmevalkit(case: Case) -> Verdict:
    """The reply itself as an option or a number, without a judge; a list can never be right."""
    reply = case.prediction
    if case.options:
        letter = vlmevalkit_letter(reply, dict(zip(case.letters, case.options, strict=True)))
        return right(letter in case.targets, letter) if letter else Verdict.unparsed()
    read = {"integer": int, "float": float}.get(case.answer_type)
    if read is None:
        # It compares the text of Python's None, whatever the reply.
        return right("None" in case.targets, None)
    try:
        return right(any(read(reply) == read(target) for target in case.targets), reply)
    except ValueError:
        return Verdict.unparsed()


def ours(case: Case) -> Verdict:
    """The option that the reply chose, or its answer: a number rounded as the gold answer is, a list, or a text."""
    if case.options:
        return multiple_choice_ours.ours(case)
    answer = short_answer(case.prediction)
    if answer is None:
        return Verdict.unparsed()
    return right(any(_is_same(answer, target, case) for target in case.targets), answer)


def _is_same(answer: str, target: str, case: Case) -> bool:
    if case.answer_type == "list":
        answers, targets = list_elements(answer), list_elements(target)
        pairs = zip(answers, targets, strict=False)
        return len(answers) == len(targets) and all(is_same_rounded(*pair, None) for pair in pairs)
    return is_same_rounded(answer, target, 0 if case.answer_type == "integer" else case.precision)


SCORERS = (
    Scorer(family="mathvista", name="ours", version=2, source="Sightline", rule=ours),
    *(
        Scorer(family="mathvista", name=name, source=source, rule=rule)
        for name, rule, source in (
            ("mathvista_official", official, "lupantech/MathVista: evaluation/extract_answer.py, calculate_score.py"),
            ("vlmevalkit", vlmevalkit, "open-compass/VLMEvalKit: vlmeval/dataset/utils/mathvista.py"),
        )
    ),
)
