"""How lmms-eval's shared extractor finds an option letter: every spelling is sought, the most telling one wins.

Source: EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks/_task_utils/mcq_extract.py.
"""

from collections.abc import Iterator, Sequence

ANSWER_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
SPELLINGS = ("{} ", "{})", "{}:", "{}.", "({})")
"""From the least to the most telling."""
START, END, PHRASE = 10, 9, 7
"""How telling a letter is at the start, at the end, and after an answer phrase; spellings count 2 to 6, in order."""


def extracted_letter(reply: str, letters: Sequence[str]) -> str | None:
    """Return the letter found in the most telling way, at the latest place; None when no letter occurs."""
    text = reply.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    found = list(_candidates(text, letters)) or [
        (0, text.rfind(letter), letter) for letter in letters if letter in text
    ]
    # Of candidates equal in both respects the first counts.
    return max(found, key=lambda candidate: candidate[:2])[2] if found else None


def _candidates(text: str, letters: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield (how telling, place, letter) in the order in which lmms-eval looks."""
    for telling, spelling in reversed(tuple(enumerate(SPELLINGS, start=2))):
        for letter in letters:
            if (place := text.rfind(spelling.format(letter))) >= 0:
                yield telling, place, letter
    lowered = text.lower()
    for phrase in ANSWER_PHRASES:
        if (place := lowered.find(phrase)) >= 0:
            for letter in letters:
                # Any later capital counts, also inside a word.
                if (after := text.find(letter, place + len(phrase))) >= 0:
                    yield PHRASE, after, letter
    stripped = text.strip()
    for letter in letters:
        if stripped.startswith(letter) and not stripped[1:2].isalpha():
            yield START, 0, letter
    for letter in letters:
        if stripped.endswith(letter) and not stripped[-2:-1].isalpha():
            yield END, len(text) - 1, letter
