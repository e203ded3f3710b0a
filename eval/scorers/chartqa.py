"""ChartQA's relaxed accuracy, as the harnesses that take a reply more or less whole compute it.

The paper says: numbers within 5 % of the gold answer, other answers equal. It says nothing of percent signs, commas,
a gold answer of zero or binary rounding, and there every harness decides for itself. Rules that first look for an
answer in the reply are in `chartqa_mistral`, ours is in `chartqa_ours`.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable

from eval.scorers.python_list import python_list
from eval.scorers.reasoning import without_reasoning
from eval.scorers.verdict import Case, Scorer, Verdict, failing, right

TOLERANCE = 0.05


def percent_to_float(text: str) -> float | None:
    """Return the number that Python reads in `text`, "45%" as 0.45; None when it is no number."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_match(answer: str, reference: str) -> bool:
    """Whether `answer` is within 5 % of `reference`, or the same text; a reference of zero is compared as text.

    In binary floating point, so that 0.95 is not within 5 % of 1.
    Source: google-research/pix2struct, pix2struct/metrics.py, relaxed_correctness.
    """
    value, scale = percent_to_float(answer), percent_to_float(reference)
    if value is not None and scale:
        return abs(value - scale) / abs(scale) <= TOLERANCE
    return answer.lower() == reference.lower()


def float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def pix2struct(case: Case) -> Verdict:
    """The reply as it is, with its blanks, against each accepted answer."""
    return right(max(relaxed_match(case.prediction, target) for target in case.targets), case.prediction)


def _one_target(judge: Callable[[str, str], Verdict]) -> Callable[[Case], Verdict | None]:
    """A rule for harnesses that know one answer a question: not applicable where several are accepted."""

    @functools.wraps(judge)
    def rule(case: Case) -> Verdict | None:
        return judge(case.prediction, case.targets[0]) if len(case.targets) == 1 else None

    return rule


@_one_target
def lmms_eval(prediction: str, target: str) -> Verdict:
    """The reply without its reasoning and outer blanks."""
    answer = without_reasoning(prediction)
    return right(relaxed_match(answer, target), answer)


@failing(ValueError)
def vlmevalkit(case: Case) -> Verdict:
    """The stripped reply; an answer that is a Python list is a list of alternatives, and fails when it is empty."""
    answer = case.prediction.strip()
    # The harness calls `eval` on the answer; its data holds literals.
    elements = python_list(case.targets[0]) if len(case.targets) == 1 else None
    targets = case.targets if elements is None else map(str, elements)
    return right(max(relaxed_match(answer, target) for target in targets), answer)


def swapped(case: Case) -> Verdict:
    """The stripped reply, with the error measured against the reply in place of the answer."""
    answer = case.prediction.strip()
    return right(max(relaxed_match(target, answer) for target in case.targets), answer)


def molmo(case: Case) -> Verdict:
    """What `molmo_answer` finds in the reply."""
    answer = molmo_answer(case.prediction)
    return right(max(relaxed_match(answer, target) for target in case.targets), answer)


def molmo_answer(reply: str) -> str:
    """Return what follows the first "Answer:" (up to the next), else the most frequent line, the first of equals.

    Source: allenai/molmo, olmo/eval/evaluators.py, VqaEval.
    """
    reply = reply.strip()
    if "Answer:" in reply:
        return reply.split("Answer:")[1].strip()
    lines = [" ".join(line.split()) for line in reply.split("\n")]
    return Counter(lines).most_common(1)[0][0]


@_one_target
def cambrian(prediction: str, target: str) -> Verdict:
    """The reply as it is; a gold answer of zero is a number like others, and percent signs make a text."""
    answer, target = prediction.lower(), target.lower()
    value, scale = float_or_none(answer), float_or_none(target)
    if value is None or scale is None:
        return right(answer == target, prediction)
    return right(abs(value - scale) <= abs(scale) * TOLERANCE, prediction)


@_one_target
def unichart(prediction: str, target: str) -> Verdict:
    """The reply without outer spaces; a gold answer of zero is compared as the text of a Python float."""
    answer, target = prediction.strip(" "), target.strip(" ")
    scale = float_or_none(target)
    # The harness has overwritten the gold answer with its float by the time the reply proves to be no number.
    shown = target if scale is None else str(scale)
    value = None if scale is None else float_or_none(answer)
    if value is None:
        return right(shown.lower() == answer.lower(), answer)
    if scale == 0:
        return right(shown == str(value), answer)
    return right(abs(scale - value) / abs(scale) <= TOLERANCE, answer)


@_one_target
def evalscope(prediction: str, target: str) -> Verdict:
    """The rest of the line after the last "ANSWER:", in capitals; without one the empty text is compared."""
    found = re.findall(r"ANSWER:\s*(.*)", prediction)
    answer = found[-1].strip() if found else ""
    verdict = right(relaxed_match(answer, target), answer)
    return verdict if found or verdict.value else Verdict.unparsed()


SCORERS = tuple(
    Scorer(family="chartqa", name=name, source=source, rule=rule)
    for name, rule, source in (
        ("pix2struct", pix2struct, "google-research/pix2struct: pix2struct/metrics.py"),
        ("lmms_eval", lmms_eval, "EvolvingLMMs-Lab/lmms-eval: tasks/chartqa/utils.py"),
        ("vlmevalkit", vlmevalkit, "open-compass/VLMEvalKit: vlmeval/dataset/utils/vqa_eval.py"),
        ("qwen_vl", swapped, "QwenLM/Qwen-VL: eval_mm/evaluate_vqa.py"),
        ("internvl", swapped, "OpenGVLab/InternVL: internvl_chat/eval/vqa/evaluate_vqa.py"),
        ("molmo", molmo, "allenai/molmo: olmo/eval/evaluators.py, olmo/eval/vqa.py"),
        ("cambrian", cambrian, "cambrian-mllm/cambrian: eval/eval/chartqa/chartqa_test.py"),
        ("unichart", unichart, "vis-nlp/UniChart: model/chartqa_model.py"),
        ("evalscope", evalscope, "modelscope/evalscope: benchmarks/chartqa"),
    )
)
