"""OCRBench: an accepted answer somewhere in the reply is enough, also within a longer word or number."""

from collections.abc import Callable

from eval.scorers.reasoning import without_reasoning
from eval.scorers.verdict import Case, Scorer, Verdict, right

FORMULA_CATEGORIES = frozenset({"HME", "HME100k", "Handwritten Mathematical Expression Recognition"})
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}


def half_width(text: str) -> str:
    """Return `text` with full-width ASCII characters as plain ones."""
    return text.translate(_HALF_WIDTH)


def contains(answer: str, case: Case, clean: Callable[[str], str]) -> Verdict:
    """Whether `answer` has an accepted answer in it: formulas without blanks, texts in lower case after `clean`."""

    def shown(text: str) -> str:
        if case.category in FORMULA_CATEGORIES:
            return text.strip().replace("\n", " ").replace(" ", "")
        return clean(text).lower().strip().replace("\n", " ")

    return right(any(shown(target) in shown(answer) for target in case.targets), answer)


def lmms_eval(case: Case) -> Verdict:
    """The reply without its reasoning; full-width characters of texts count as plain ones."""
    return contains(without_reasoning(case.prediction), case, half_width)


def vlmevalkit(case: Case) -> Verdict:
    """The reply as it is."""
    return contains(case.prediction, case, str)


SCORERS = tuple(
    Scorer(family="ocrbench", name=name, source=source, rule=rule)
    for name, rule, source in (
        ("lmms_eval", lmms_eval, "EvolvingLMMs-Lab/lmms-eval: tasks/ocrbench/utils.py"),
        ("vlmevalkit", vlmevalkit, "open-compass/VLMEvalKit: vlmeval/dataset/image_vqa.py, OCRBench"),
    )
)
