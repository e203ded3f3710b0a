"""GSM8K and MGSM: a number in the reply, found by a pattern, equal to the gold number as a text.

Source: EleutherAI/lm-evaluation-harness, tasks/gsm8k/gsm8k-cot-llama.yaml and gsm8k-cot.yaml; openai/simple-evals,
mgsm_eval.py.
"""

import re
from collections.abc import Callable

from eval.scorers.verdict import Case, Scorer, Verdict, right

LLAMA_STRICT = re.compile(r"The final answer is ((-?[$0-9.,]{2,})|(-?[0-9]+))")
COT_STRICT = re.compile(r"The answer is (\-?[0-9\.\,]+).")
ANY_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def _lm_eval(pattern: re.Pattern, place: int) -> Callable[[Case], Verdict]:
    """The rule that takes the first (0) or last (-1) match of `pattern`."""

    def rule(case: Case) -> Verdict:
        found = [next(group for group in each.groups() if group) for each in pattern.finditer(case.prediction)]
        if not found:
            return Verdict.unparsed()
        answer = found[place]
        return right(bare_number(answer) in [bare_number(target) for target in case.targets], answer)

    return rule


def bare_number(text: str) -> str:
    """Return `text` without commas, dollars, everything up to "#### ", and an end period; "18.00" stays as it is."""
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return re.sub(r"\.$", "", text).lower()


ANSWER_WORDS = {
    **{"en": "Answer", "de": "Antwort", "es": "Respuesta", "fr": "Réponse", "sw": "Jibu", "ru": "Ответ"},
    **{"bn": "উত্তর", "ja": "答え", "te": "సమాధానం", "th": "คำตอบ", "zh": "答案"},
}
"""How MGSM's prompts call the answer, by language."""


def mgsm(case: Case) -> Verdict | None:
    """The last number after the language's word for answer, without its sign; only for the languages of MGSM."""
    if case.language not in ANSWER_WORDS:
        return None
    _, word, rest = case.prediction.rpartition(ANSWER_WORDS[case.language])
    numbers = re.findall(r"\d+\.?\d*", rest.replace(",", "")) if word else []
    answer = numbers[-1].rstrip(".") if numbers else ""
    value = answer.rstrip("0").rstrip(".") if "." in answer else answer
    is_right = value in [target.replace(",", "") for target in case.targets]
    return right(is_right, answer) if answer or is_right else Verdict.unparsed()


LM_EVAL = "EleutherAI/lm-evaluation-harness: tasks/gsm8k/"

SCORERS = (
    *(
        Scorer(family="gsm8k", name=name, source=LM_EVAL + file, rule=_lm_eval(pattern, place))
        for name, file, pattern, place in (
            ("lm_eval_gsm8k_cot_llama_strict", "gsm8k-cot-llama.yaml", LLAMA_STRICT, -1),
            ("lm_eval_gsm8k_cot_llama_flexible", "gsm8k-cot-llama.yaml", ANY_NUMBER, -1),
            ("lm_eval_gsm8k_cot_strict", "gsm8k-cot.yaml", COT_STRICT, 0),
            ("lm_eval_gsm8k_cot_flexible", "gsm8k-cot.yaml", ANY_NUMBER, -1),
        )
    ),
    Scorer(family="mgsm", name="simple_evals", source="openai/simple-evals: mgsm_eval.py", rule=mgsm),
)
