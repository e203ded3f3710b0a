"""Which part of a free reply is its answer: what our own scorers judge, on every benchmark alike.

Markers are trusted in this order, and of several of one kind the last: "FINAL ANSWER", a LaTeX box, "answer:" or
"answer is". Nothing is deleted from the answer but the markup around it: brackets and underscores may belong to it.
"""

import re
import unicodedata

from eval.scorers.reasoning import without_reasoning

_CLOSING_MARKUP = r"[*_`\"'”]*"
FINAL_ANSWER = re.compile(
    rf"(?i:final\s+(?:answer|choice|option){_CLOSING_MARKUP}\s*(?:is\b|[:：=])|\bfinal\s*[:：])"
    # Without a colon a dash between blanks stands for it.
    rf"|FINAL\s+ANSWER\b{_CLOSING_MARKUP}(?:[ \t]+[-–—](?=[ \t]))?"
)
ANSWER = re.compile(rf"\banswers?{_CLOSING_MARKUP}\s*(?:is\b|are\b|[:：=])", re.IGNORECASE)
MAX_BARE_WORDS = 20
"""A reply of one line with more words than this reads as reasoning that was cut off, not as an answer."""


def marked_answer(reply: str) -> str | None:
    """Return what the reply itself marks as its answer: "" when nothing follows the mark, None without a mark."""
    text = without_reasoning(reply)
    if (rest := _after_last(FINAL_ANSWER, text)) is not None:
        return _first_line(rest)
    if (boxed := _last_box(text)) is not None:
        return without_markup(boxed)
    if (rest := _after_last(ANSWER, text)) is not None:
        return _first_line(rest)
    return None


def final_answer(reply: str) -> str | None:
    """Return the marked answer, else a reply of one short line; None where the reply gives no answer.

    For prompts that ask for reasoning, where a long text without a mark is an answer that never came.
    """
    answer = marked_answer(reply)
    if answer is None:
        answer = without_markup(without_reasoning(reply))
        if "\n" in answer or len(answer.split()) > MAX_BARE_WORDS:
            return None
    return answer or None


def short_answer(reply: str) -> str | None:
    """Return the marked answer, else the whole reply, however long; None for an empty one.

    For prompts that ask for the answer alone, which may be an address of three lines.
    """
    answer = marked_answer(reply)
    return (without_markup(without_reasoning(reply)) if answer is None else answer) or None


def without_markup(text: str) -> str:
    """Return `text` without blanks, asterisks, backticks, dollar signs of a formula and a LaTeX box around it."""
    text = text.strip().strip("*`").strip()
    if len(text) > 2 and text.startswith("$") and text.endswith("$"):
        text = text.strip("$").strip()
    if text.startswith(_BOX) and (content := _last_box(text)) is not None:
        return without_markup(content)
    if found := re.fullmatch(r"\\text\w*\{([^{}]*)\}", text):
        return found.group(1).strip()
    return text


CURRENCY_SIGNS = "$¢£¥฿₠-⃀"
"""As they stand within the brackets of a regular expression."""
_DASHES = str.maketrans(dict.fromkeys("−‐‑‒–﹣", "-"))
_RAISED = re.compile(r"(?<![^\W\d_])[²³¹⁰-ₜ]+")
"""Super- and subscripts, but for those of a letter: "m²" and "CO₂" are often written m2 and CO2."""


def plain_text(text: str) -> str:
    """Return `text` with one kind of blank, dash, digit and compatibility form, and no blanks around it.

    The 2 of "5²" stays a power, as in "5^2".
    """
    text = _RAISED.sub(lambda found: ("_" if found[0] >= "₀" else "^") + found[0], text)
    return " ".join(unicodedata.normalize("NFKC", text).translate(_DASHES).split())


def bare_text(text: str) -> str:
    """Return `text` without blanks, quotation marks, a bracket around it, and an end period."""
    text = plain_text(text).strip("\"'“”‘’*` ")
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    return text.removesuffix(".").rstrip("\"'“”‘’*` ")


def _after_last(marker: re.Pattern, text: str) -> str | None:
    place = None
    for found in marker.finditer(text):
        place = found.end()
    return None if place is None else text[place:]


_BEFORE_ANSWER = re.compile(rf"^[\s:：=*`]*(?:[-–—]\s+(?![\s\d.]|[A-Z]{{0,2}}[{CURRENCY_SIGNS}])|•\s+)?")
"""Markup and a bullet; a dash before a number is its sign."""


def _first_line(rest: str) -> str:
    """Return the first line with more than markup or a bullet, read as an answer; "" when there is none."""
    lines = (without_markup(_BEFORE_ANSWER.sub("", line)) for line in rest.split("\n"))
    return next((line for line in lines if line), "")


_BOX = "\\boxed{"


def _last_box(text: str) -> str | None:
    """Return what stands in the last LaTeX box; None without one, or when it is not closed."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth = 1
    for place in range(start + len(_BOX), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len(_BOX) : place]
    return None
