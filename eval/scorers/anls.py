"""ANLS (DocVQA, InfographicVQA): one minus the normalised edit distance to the nearest accepted answer.

Harnesses differ in what they divide by, in what they keep at the threshold of one half, and in blanks. One of Meta's
public benchmarks under the name of DocVQA is no ANLS but equality after normalisation; it stands here beside them.
"""

from collections.abc import Iterable

from eval.scorers.answer import short_answer
from eval.scorers.chartqa import molmo_answer
from eval.scorers.chartqa_mistral import without_end_punctuation
from eval.scorers.edit_distance import edit_distance
from eval.scorers.reasoning import without_tagged_reasoning
from eval.scorers.verdict import Case, Scorer, Verdict, failing, right
from eval.scorers.vqa_words import llama_stack_words

THRESHOLD = 0.5


def folded(text: str) -> str:
    """Return `text` in lower case, its blanks collapsed."""
    return " ".join(text.lower().split())


def rrc_score(answer: str, targets: tuple[str, ...]) -> float:
    """Return ANLS as the competition's script computes it: folded texts, over the length of the raw ones."""
    distances = []
    for target in targets:
        length = max(len(target.upper()), len(answer.upper()))
        distances.append(_distance(folded(target), folded(answer), length) if length else 0.0)
    score = 1 - min(distances)
    return score if score >= THRESHOLD else 0.0


def _distance(first: str, second: str, length: int) -> float:
    """Return the edit distance over `length`, or 1 where it must be beyond the threshold."""
    # Texts of different lengths are at least that far apart: a long wrong reply costs nothing.
    is_far = abs(len(first) - len(second)) / length > THRESHOLD
    return 1.0 if is_far else edit_distance(first, second) / length


def rrc(case: Case) -> Verdict:
    """The reply as it is."""
    return Verdict(rrc_score(case.prediction, case.targets), case.prediction)


def lmms_eval(case: Case) -> Verdict:
    """The competition's score of the reply without its reasoning."""
    # Its command line also strips outer blanks, its metric does not; they only count in the length.
    answer = without_tagged_reasoning(case.prediction)
    return Verdict(rrc_score(answer, case.targets), answer)


@failing(ZeroDivisionError)
def pix2struct(case: Case) -> Verdict:
    """The reply as it is, in lower case; blanks count, and exactly one half becomes 0."""
    answer = case.prediction.lower()
    scores = [above_half(answer, target.lower(), max(len(answer), len(target.lower()))) for target in case.targets]
    return Verdict(max(scores), case.prediction)


@failing(ZeroDivisionError)
def molmo(case: Case) -> Verdict:
    """What `molmo_answer` finds in the reply, as pix2struct, but over the length of the raw texts."""
    answer = molmo_answer(case.prediction)
    scores = [above_half(answer.lower(), target.lower(), max(len(answer), len(target))) for target in case.targets]
    return Verdict(max(scores), answer)


def above_half(answer: str, target: str, length: int) -> float:
    """Return one minus the edit distance over `length` where the distance is below one half of it, else 0.

    Raises: ZeroDivisionError for a length of 0, as the harnesses do with two empty texts.
    """
    distance = _distance(answer, target, length)
    return 1 - distance if distance < THRESHOLD else 0.0


def _nearness(answer: str, targets: Iterable[str]) -> float:
    """Return one minus the edit distance to the nearest of `targets`, over the length of the longer of the two."""
    lengths = [(target, max(len(answer), len(target))) for target in targets]
    return 1 - min(edit_distance(answer, target) / length if length else 0.0 for target, length in lengths)


def mistral(case: Case) -> Verdict:
    """Folded, without end punctuation, and without any threshold."""
    answer = without_end_punctuation(folded(case.prediction))
    return Verdict(_nearness(answer, [without_end_punctuation(folded(target)) for target in case.targets]), answer)


def vlmevalkit_folded(case: Case) -> Verdict:
    """As newer versions of VLMEvalKit: over the length of the folded texts, where older ones took the raw."""
    score = _nearness(folded(case.prediction), map(folded, case.targets))
    return Verdict(score if score >= THRESHOLD else 0.0, case.prediction)


def llama_stack(case: Case) -> Verdict:
    """Equality with an accepted answer after normalising the words of both."""
    answer = llama_stack_words(case.prediction)
    return right(answer in [llama_stack_words(target) for target in case.targets], answer)


def ours(case: Case) -> Verdict:
    """The answer of the reply, folded and over the length of the folded texts."""
    answer = short_answer(case.prediction)
    if answer is None:
        return Verdict.unparsed()
    return Verdict(rrc_score(folded(answer), tuple(map(folded, case.targets))), answer)


SCORERS = (
    Scorer(family="anls", name="ours", version=2, source="Sightline", rule=ours),
    *(
        Scorer(family="anls", name=name, source=source, rule=rule)
        for name, rule, source in (
            ("rrc_script_in_qwen_vl", rrc, "QwenLM/Qwen-VL: eval_mm/infographicsvqa_eval.py"),
            ("lmms_eval", lmms_eval, "EvolvingLMMs-Lab/lmms-eval: api/metrics.py, anls"),
            ("vlmevalkit", rrc, "open-compass/VLMEvalKit: vlmeval/dataset/utils/vqa_eval.py"),
            ("vlmevalkit_folded_length", vlmevalkit_folded, "open-compass/VLMEvalKit: the same file as of 0a04a1d"),
            ("pix2struct", pix2struct, "google-research/pix2struct: pix2struct/metrics.py, anls_metric"),
            ("molmo", molmo, "allenai/molmo: olmo/eval/vqa.py, anls_metric"),
            ("mistral", mistral, "mistralai/mistral-evals: eval/metrics.py, ANLS"),
            ("llama_stack_docvqa_normalised_match", llama_stack, "meta-llama/llama-stack: docvqa_scoring_fn.py"),
        )
    ),
)
