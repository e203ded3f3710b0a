"""What stands around a question: benchmarks tell a model how to answer, and people type carelessly."""

from dataclasses import replace
from random import Random

from vlm.training.synthetic.questions.question import Question

SHARE_INSTRUCTED = 0.06
SHARE_CARELESS = 0.08


def instructed(random: Random, question: str) -> str:
    """Add what benchmarks tell a model to do around their questions."""
    return random.choice(
        (
            f"{question}\nAnswer the question with a single word.",
            f"{question}\nAnswer the question using a single word or phrase.",
            f"{question} Answer briefly.",
            f"Question: {question}\nShort answer:",
            f"Look at the chart and answer. {question}",
        )
    )


def as_people_type(random: Random, question: Question) -> Question:
    """Return the question as it was thought of, or with an instruction, or as somebody in a hurry types it."""
    text, draw = question.question, random.random()
    if "\n" in text or "answer" in text:
        return question
    if draw < SHARE_INSTRUCTED:
        text = instructed(random, text)
    elif draw < SHARE_INSTRUCTED + SHARE_CARELESS:
        text = random.choice((text[0].lower() + text[1:], text.removesuffix("?"), f"{text}?", text.replace("?", " ?")))
    return replace(question, question=text)
