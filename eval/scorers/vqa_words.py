"""The word rules of the VQA benchmarks: punctuation, number words, articles and contractions, with their quirks.

Source: GT-Vision-Lab/VQA, vqaEvaluation/vqaEval.py, from which every other harness has its copy.
"""

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}

_FULL_FORMS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in _FULL_FORMS.split()
    for place, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}
"""A contraction without one of its apostrophes, and how it is written; the last is an error of the original."""

COMMA_IN_NUMBER = re.compile(r"\d,\d")
COMMAS_IN_NUMBER = re.compile(r"\d,+\d")
PERIOD = re.compile(r"\.(?!\d)")
PERIOD_APART = re.compile(r"(?<!\d)\.(?!\d)")
MAX_PERIODS = 32
"""Every copy hands the flag re.UNICODE, which is 32, to `sub` as the count."""


def without_punctuation(text: str, *, comma: re.Pattern = COMMA_IN_NUMBER, period: re.Pattern = PERIOD) -> str:
    """Return `text` with each mark dropped where it touches a blank or a number has commas, else made a blank."""
    has_comma = comma.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        drops = has_comma or mark + " " in text or " " + mark in text
        cleaned = cleaned.replace(mark, "" if drops else " ")
    return period.sub("", cleaned, count=MAX_PERIODS)


def plain_words(text: str) -> str:
    """Return `text` in lower case with number words as digits, contractions in full, and no articles."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def official_words(text: str) -> str:
    """Normalise a line as the official VQA script does."""
    return plain_words(without_punctuation(text))


def evalai_words(text: str) -> str:
    """Normalise an answer as the EvalAI server does for TextVQA: commas, question marks and 's are taken first.

    Source: EvolvingLMMs-Lab/lmms-eval, tasks/_task_utils/vqa_eval_metric.py, after facebookresearch/mmf.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(without_punctuation(one_line(text), comma=COMMAS_IN_NUMBER))


LLAMA_STACK_DROPPED = ARTICLES | {"to", "in", "from", "by"}
LLAMA_STACK_CONTRACTIONS = CONTRACTIONS | {"1st": "first", "2nd": "second", "3rd": "third"}


def llama_stack_words(text: str) -> str:
    """Normalise an answer as llama-stack's DocVQA benchmark does: it judges each mark by what the last one left.

    Source: meta-llama/llama-stack, providers/inline/scoring/basic/scoring_fn/docvqa_scoring_fn.py.
    """
    for mark in PUNCTUATION:
        drops = mark + " " in text or " " + mark in text or COMMA_IN_NUMBER.search(text)
        text = PERIOD.sub("", text.replace(mark, "" if drops else " "), count=MAX_PERIODS)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(LLAMA_STACK_CONTRACTIONS.get(word, word) for word in words if word not in LLAMA_STACK_DROPPED)
