"""Multiple choice (AI2D and others of its kind), as other harnesses read a letter out of a reply.

Where a harness draws lots when it finds nothing, the verdict is "unparsed" and 0. Molmo's rule always finds an option,
because it takes the nearest; it draws no lots, so it is kept as it is. Our own rule is in `multiple_choice_ours`.
"""

import re
from collections.abc import Callable, Mapping
from string import punctuation

from eval.scorers.chartqa import molmo_answer
from eval.scorers.edit_distance import edit_distance
from eval.scorers.mcq_extract import extracted_letter
from eval.scorers.reasoning import without_reasoning
from eval.scorers.verdict import Case, Scorer, Verdict, right

_WITHOUT_PUNCTUATION = str.maketrans("", "", punctuation)


def _letter_rule(read: Callable[[str, Mapping[str, str]], str | None]) -> Callable[[Case], Verdict | None]:
    """The rule that reads a letter out of the reply, given the options by their letters."""

    def rule(case: Case) -> Verdict | None:
        if not case.options:
            return None
        letter = read(case.prediction, dict(zip(case.letters, case.options, strict=True)))
        return right(letter in case.targets, letter) if letter else Verdict.unparsed()

    return rule


def lmms_eval_ai2d(case: Case) -> Verdict:
    """A capital and a period at the start, else the whole reply, equal but for case and punctuation."""
    found = re.match(r"\s*([A-Z])\.", case.prediction)
    # The filter looks before the reasoning is taken out, so "<think>...</think>B. leaf" stays whole.
    answer = without_reasoning(found.group(1) if found else case.prediction)
    plain = answer.lower().translate(_WITHOUT_PUNCTUATION)
    return right(plain in [target.lower().translate(_WITHOUT_PUNCTUATION) for target in case.targets], answer)


def lmms_eval_mcq(reply: str, options: Mapping[str, str]) -> str | None:
    return extracted_letter(without_reasoning(reply), tuple(options))


def mmmu_letter(reply: str, options: Mapping[str, str], *, loose: bool = False) -> str | None:
    """Return "(B)", else " B ", else the option whose text a reply of more than five words has; the last of several.

    loose: lmms-eval's copy, in which "B " and then "B." are enough, so that a word may end in the letter.
    Source: MMMU-Benchmark/MMMU, mmmu/utils/eval_utils.py, parse_multi_choice_response, without its drawing of lots.
    """
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    reply = f" {reply} "
    for spelling in ("({})", "{} ", "{}.") if loose else ("({})", " {} "):
        if candidates := [letter for letter in options if spelling.format(letter) in reply]:
            # Of several, the copy too takes the last that stands apart, however they were found.
            place = "({})" if spelling == "({})" else " {} "
            return max(candidates, key=lambda letter: reply.rfind(place.format(letter)))
    if len(reply.split()) > 5:
        lowered = reply.lower()
        candidates = [letter for letter, text in options.items() if text.lower() in lowered]
        if candidates:
            return max(candidates, key=lambda letter: lowered.rfind(options[letter].lower()))
    return None


def lmms_eval_mmmu(reply: str, options: Mapping[str, str]) -> str | None:
    return mmmu_letter(without_reasoning(reply), options, loose=True)


def mmmu_pro_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """Return the only option letter after the last "Answer:", else what `mmmu_letter` reads loosely.

    Source: MMMU-Benchmark/MMMU, mmmu-pro/evaluate.py, without its drawing of lots.
    """
    _, marker, rest = reply.rpartition("Answer:")
    letters = [letter for letter in options if letter in rest] if marker else []
    return letters[0] if len(letters) == 1 else mmmu_letter(reply, options, loose=True)


VLMEVALKIT_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def vlmevalkit_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """Return the only option letter among the words, if it is one of the last four, else the only option text in it.

    Source: open-compass/VLMEvalKit, vlmeval/utils/matching_util.py, can_infer, with no judge ("exact matching").
    """
    # An empty column of its tables is no option.
    options = {letter: text for letter, text in options.items() if text}
    if "Failed to obtain answer via API" not in reply:
        if any(refusal in reply for refusal in VLMEVALKIT_REFUSALS):
            return None
        words = reply.translate(str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))).split()
        letters = [letter for letter in options if letter in words]
        if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
            return letters[0]
        if not letters and "Z" in words:
            return None
    reply = reply.lower()
    if len(reply) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, text in options.items() if text.lower() in reply]
    return found[0] if len(found) == 1 else None


_MARKER = re.compile(r"ANSWER\s*:\s*\**\s*", re.IGNORECASE)
_BRACKETED_LABELS = re.compile(r"[(\[（【]\s*([A-Za-z\d](?:\s*[,，]\s*[A-Za-z\d])*)\s*[)\]）】]")
_PLAIN_LABELS = re.compile(r"([A-Za-z\d][A-Za-z\d ,]*)")


def evalscope_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """Return the label after the last "ANSWER:" that one follows, else the last capital, if it is an option.

    Source: modelscope/evalscope, evalscope/utils/multi_choices.py, parse_answers.
    """
    for marker in reversed(list(_MARKER.finditer(reply))):
        for pattern in (_BRACKETED_LABELS, _PLAIN_LABELS):
            found = pattern.match(reply, marker.end())
            if found and (labels := _leading_labels(found.group(1), options)):
                labels = labels.strip()
                return labels if labels in options else None
    capital = next((character for character in reversed(reply) if character.isupper()), None)
    return capital if capital in options else None


def _leading_labels(text: str, options: Mapping[str, str]) -> str:
    """Return the beginning of `text` in which every word is made of option letters."""
    end = 0
    for word in re.finditer(r"[A-Za-z\d]+", text):
        if not set(word.group()) <= set(options):
            break
        end = word.end()
    return text[:end]


def cambrian_ai2d(case: Case) -> Verdict:
    """The first character after "answer is" or "answer:", in lower case; "a" to "d" stand for the indices 0 to 3."""
    text = case.prediction.lower().strip()
    for marker in ("answer is", "answer is:", "answer:"):
        text = text.split(marker)[-1]
    answer = text.strip().rstrip(".:,").lstrip("(").rstrip(")")[:1]
    index = str("abcd".index(answer)) if answer and answer in "abcd" else answer
    return right(index in [str(ord(target) - ord("A")) for target in case.targets if len(target) == 1], answer or None)


def qwen_vl_exact_letter(case: Case) -> Verdict:
    """The stripped reply, equal but for case."""
    answer = case.prediction.strip()
    return right(answer.lower() in [target.strip().lower() for target in case.targets], answer)


def molmo_letter(reply: str, options: Mapping[str, str]) -> str:
    """Return the letter equal to the reply, the only one that contains it, else the one at the least edit distance.

    Source: allenai/molmo, olmo/eval/vqa.py, select_mc_option, with letters as the options' names.
    """
    answer = molmo_answer(reply).lower().strip()
    names = {letter: letter.lower() for letter in options}
    for letter, name in names.items():
        if name == answer:
            return letter
    containing = [letter for letter, name in names.items() if answer in name]
    if len(containing) == 1:
        return containing[0]
    return min(names, key=lambda letter: edit_distance(names[letter], answer))


_MARKERS = (
    r"The best answer is |Answer\s*:|Answer\s*:\u200b{6}|উত্তর\s*:|उत्तर\s*:|উত্তরঃ|উত্তর\s*:|Antwort\s*:"
    r"|답변\s*:|정답\s*:|답\s*:|答案\s*：|答案\s*:|答\s*：|答\s*:|答复\s*：|答曰\s*：|الإجابة:|الجواب:"
    r"|إجابة:|الإجابة النهائية:|الإجابة الصحيحة:|الإجابة الصحيحة هي:|الإجابة هي:|Respuesta\s*:"
    r"|Risposta\s*:|答え\s*:|答え\s*：|回答\s*:|回答\s*：|解答\s*:|Jawaban\s*:|Réponse\s*:|Resposta\s*:"
    r"|Jibu\s*:|Idahun\s*:|Ìdáhùn\s*:|Idáhùn\s*:|Àmọ̀nà\s*:|Àdáhùn\s*:|Ànúgọ\s*:|Àṣàyàn\s*:"
)
LLAMA_STACK_MARKERS = tuple(_MARKERS.split("|"))
"""How an answer is announced in the languages of Meta's multilingual MMLU, in the order in which they are tried."""


def llama_stack(case: Case) -> Verdict:
    """The letter after the first of the known markers that occurs, as it is written there."""
    for marker in LLAMA_STACK_MARKERS:
        if found := re.search(rf"(?i){marker}\s*([A-D]|[أ-د]|[অবডঢＡＢＣＤ])", case.prediction):
            return right(found.group(1) in case.targets, found.group(1))
    return Verdict.unparsed()


LMMS_EVAL = "EvolvingLMMs-Lab/lmms-eval: tasks/"

SCORERS = tuple(
    Scorer(family="multiple_choice", name=name, source=source, rule=rule)
    for name, rule, source in (
        ("lmms_eval_ai2d", lmms_eval_ai2d, LMMS_EVAL + "ai2d/utils.py"),
        ("lmms_eval_mcq_extract", _letter_rule(lmms_eval_mcq), LMMS_EVAL + "_task_utils/mcq_extract.py"),
        ("lmms_eval_mmmu_parser", _letter_rule(lmms_eval_mmmu), LMMS_EVAL + "_task_utils/mmmu_mcq_utils.py"),
        (
            "vlmevalkit_exact_matching",
            _letter_rule(vlmevalkit_letter),
            "open-compass/VLMEvalKit: vlmeval/dataset/utils/multiple_choice.py",
        ),
        ("evalscope_ai2d", _letter_rule(evalscope_letter), "modelscope/evalscope: utils/multi_choices.py"),
        ("cambrian_ai2d", cambrian_ai2d, "cambrian-mllm/cambrian: eval/eval/ai2d/ai2d_test.py"),
        ("qwen_vl_exact_letter", qwen_vl_exact_letter, "QwenLM/Qwen-VL: eval_mm/evaluate_vqa.py"),
        ("molmo_letter_options", _letter_rule(molmo_letter), "allenai/molmo: olmo/eval/vqa.py, select_mc_option"),
        ("mmmu_official_parser", _letter_rule(mmmu_letter), "MMMU-Benchmark/MMMU: mmmu/utils/eval_utils.py"),
        ("mmmu_pro_official", _letter_rule(mmmu_pro_letter), "MMMU-Benchmark/MMMU: mmmu-pro/evaluate.py"),
        ("llama_stack_regex_mc", llama_stack, "meta-llama/llama-stack: regex_parser_scoring_fn.py"),
    )
)
