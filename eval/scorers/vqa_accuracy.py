"""VQA accuracy (VQAv2, TextVQA): how many of ten people gave the answer; three agreeing make it right.

The official script normalises only where people disagree; its copies disagree on that, on what they normalise, and on
whether a person's own answer counts when the reply is compared with the other nine.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from eval.scorers.answer import short_answer
from eval.scorers.chartqa import molmo_answer
from eval.scorers.chartqa_mistral import unquoted
from eval.scorers.reasoning import without_tagged_reasoning
from eval.scorers.verdict import Case, Scorer, Verdict, failing, right
from eval.scorers.vqa_words import (
    COMMAS_IN_NUMBER,
    PERIOD_APART,
    evalai_words,
    official_words,
    one_line,
    plain_words,
    without_punctuation,
)


def agreement(answer: str, answers: Sequence[str]) -> float:
    """Return the mean over the people of min(1, other people who gave `answer` / 3)."""
    same = sum(each == answer for each in answers)
    return sum(min(1.0, (same - (each == answer)) / 3) for each in answers) / len(answers)


def official(case: Case) -> Verdict:
    """Normalises both sides where the people's answers differ, neither where they are all the same."""
    answer, answers = one_line(case.prediction), [one_line(target) for target in case.targets]
    if len(set(answers)) > 1:
        answer, answers = official_words(answer), [official_words(each) for each in answers]
    return Verdict(agreement(answer, answers), answer)


def qwen_vl(case: Case) -> Verdict:
    """Normalises the reply always, of the people's answers the punctuation alone, and only where they differ."""
    answer, answers = official_words(one_line(case.prediction)), case.targets
    if len(set(answers)) > 1:
        answers = [without_punctuation(target) for target in answers]
    return Verdict(agreement(answer, answers), answer)


def _normalised(words: Callable[[str], str]) -> Callable[[Case], Verdict]:
    """The rule that normalises both sides by `words` always."""

    def rule(case: Case) -> Verdict:
        answer = words(case.prediction)
        return Verdict(agreement(answer, [words(target) for target in case.targets]), answer)

    return rule


def _lmms_eval_vqav2_words(text: str) -> str:
    return plain_words(without_punctuation(one_line(text), comma=COMMAS_IN_NUMBER))


def _vlmevalkit_words(text: str) -> str:
    # The mended pattern keeps the period of "3.".
    return plain_words(without_punctuation(one_line(text), period=PERIOD_APART))


def _after_reasoning(rule: Callable[[Case], Verdict]) -> Callable[[Case], Verdict]:
    return lambda case: rule(replace(case, prediction=without_tagged_reasoning(case.prediction)))


@failing(AssertionError)
def internvl(case: Case) -> Verdict:
    """EvalAI's words on both sides; fails without ten answers."""
    if len(case.targets) != 10:
        raise AssertionError("ten answers are expected")
    return _normalised(evalai_words)(case)


def molmo(case: Case) -> Verdict:
    """A third of the people who gave what `molmo_answer` finds in the reply, at most 1."""
    answer = _molmo_words(molmo_answer(case.prediction))
    return Verdict(min(1.0, sum(_molmo_words(target) == answer for target in case.targets) / 3), answer)


def _molmo_words(text: str) -> str:
    return official_words(one_line(text).lower())


def mistral(case: Case) -> Verdict:
    """A third of the people who gave the reply letter for letter but for quotes around it, at most 1."""
    answer = unquoted(case.prediction)
    return Verdict(min(1.0, sum(unquoted(target) == answer for target in case.targets) / 3), answer)


def ours(case: Case) -> Verdict:
    """The answer of the reply; both sides normalised always, a person's own answer left out.

    Of so few answers that no three others could agree, any one is right.
    """
    answer = short_answer(case.prediction)
    if answer is None:
        return Verdict.unparsed()
    words, answers = evalai_words(answer), [evalai_words(target) for target in case.targets]
    return right(words in answers, answer) if len(answers) < 4 else Verdict(agreement(words, answers), answer)


VLMEVALKIT = "open-compass/VLMEvalKit: vlmeval/dataset/utils/vqa_eval.py"
LMMS_EVAL = "EvolvingLMMs-Lab/lmms-eval: tasks/{}/utils.py"

SCORERS = (
    Scorer(family="vqa_accuracy", name="ours", version=2, source="Sightline", rule=ours),
    *(
        Scorer(family="vqa_accuracy", name=name, source=source, rule=rule)
        for name, rule, source in (
            ("vqa_official_v2", official, "GT-Vision-Lab/VQA: PythonEvaluationTools/vqaEvaluation/vqaEval.py"),
            ("lmms_eval_textvqa", _after_reasoning(_normalised(evalai_words)), LMMS_EVAL.format("textvqa")),
            ("lmms_eval_vqav2", _after_reasoning(_normalised(_lmms_eval_vqav2_words)), LMMS_EVAL.format("vqav2")),
            ("vlmevalkit", _normalised(_vlmevalkit_words), VLMEVALKIT),
            ("qwen_vl_official_style", qwen_vl, "QwenLM/Qwen-VL: eval_mm/vqa_eval.py"),
            ("internvl_textvqa", internvl, "OpenGVLab/InternVL: internvl_chat/eval/vqa/textvqa_eval.py"),
            ("molmo", molmo, "allenai/molmo: olmo/eval/vqa.py, vqa_score"),
            ("mistral", mistral, "mistralai/mistral-evals: eval/metrics.py, VQAMatch"),
        )
    ),
)
