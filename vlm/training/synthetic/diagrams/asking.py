"""Questions about a diagram, as AI2D asks them: with four options, or openly."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from vlm.training.synthetic.boxes import Box
from vlm.training.synthetic.diagrams.drawing import LETTERS, Drawing, Part
from vlm.training.synthetic.questions.declined import decline
from vlm.training.synthetic.questions.question import Question
from vlm.training.synthetic.words import Split, pseudo_word

SHARE_WITH_OPTIONS = 0.65
SHARE_DECLINED = 0.06
NUM_OPTIONS = 4
COUNTS = [str(count) for count in range(10)]


def ask_about(random: Random, drawing: Drawing, split: Split, num_questions: int) -> list[Question]:
    """Return up to `num_questions` different questions."""
    questions: dict[str, Question] = {}
    askers = [_neighbour, _neighbour, _named, _named, _count, _lettered_neighbour, _trait, _trait, _missing]
    for _ in range(4 * num_questions):
        if random.random() < SHARE_DECLINED:
            question = _not_shown(random, drawing, split)
        else:
            question = random.choice(askers)(random, drawing)
        if question:
            questions.setdefault(question.question, question)
        if len(questions) == num_questions:
            break
    return list(questions.values())


def _neighbour(random: Random, drawing: Drawing) -> Question | None:
    """Ask what an arrow leads to, or what it comes from, where there is one such."""
    shows_words = drawing.parts[0].name_box is not None
    if not drawing.arrows or not shows_words:
        return None
    found = _only_neighbour(random, drawing)
    if found is None:
        return None
    part, other, forwards = found
    question = random.choice(_after(drawing.noun, part.name) if forwards else _before(drawing.noun, part.name))
    others = [each.name for each in drawing.parts if each not in (part, other)]
    return _asked(random, question, other.name, others, (part.name_box,), (other.name_box,), "diagram_neighbour")


def _lettered_neighbour(random: Random, drawing: Drawing) -> Question | None:
    """Ask the same by letters alone."""
    if not drawing.arrows or drawing.parts[0].letter_box is None:
        return None
    found = _only_neighbour(random, drawing)
    if found is None:
        return None
    part, other, forwards = found
    verb = random.choice(("comes after", "follows") if forwards else ("comes before", "leads to"))
    others = [each.letter for each in drawing.parts if each not in (part, other)]
    question = f"Which letter {verb} {part.letter}?"
    return _asked(random, question, other.letter, others, (part.letter_box,), (other.letter_box,), "diagram_letter")


def _only_neighbour(random: Random, drawing: Drawing) -> tuple[Part, Part, bool] | None:
    """Draw a part with the only one that its arrows lead to (True) or come from (False); None where it has others."""
    forwards = random.random() < 0.6
    index = random.randrange(len(drawing.parts))
    ends = [pair[forwards] for pair in drawing.arrows if pair[not forwards] == index]
    return (drawing.parts[index], drawing.parts[ends[0]], forwards) if len(ends) == 1 else None


def _after(noun: str, name: str) -> tuple[str, ...]:
    return (
        f"What comes after {name}?",
        f"Which {noun} follows {name}?",
        f"What does the arrow from {name} lead to?",
        f"Which {noun} comes directly after {name}?",
    )


def _before(noun: str, name: str) -> tuple[str, ...]:
    return (
        f"What comes before {name}?",
        f"Which {noun} leads to {name}?",
        f"Which {noun} comes just before {name}?",
    )


def _named(random: Random, drawing: Drawing) -> Question | None:
    """Ask what a letter names, or which letter names something."""
    part = random.choice(drawing.parts)
    if part.name_box is None or part.letter_box is None:
        return None
    others = [each for each in drawing.parts if each is not part]
    if random.random() < 0.5:
        question = random.choice(
            (
                f"What does letter {part.letter} name?",
                f"What does {part.letter} represent?",
                f"What is labeled {part.letter}?",
            )
        )
        answer, wrong, find, copy = part.name, [each.name for each in others], part.letter_box, part.name_box
    else:
        question = random.choice(
            (
                f"Which letter stands for {part.name}?",
                f"Which letter names {part.name}?",
                f"Which label shows {part.name}?",
            )
        )
        answer, wrong, find, copy = part.letter, [each.letter for each in others], part.name_box, part.letter_box
    return _asked(random, question, answer, wrong, (find,), (copy,), "diagram_named")


def _count(random: Random, drawing: Drawing) -> Question:
    """Ask how many parts there are, or how many arrows lead to one or start from it."""
    part, is_of_arrows = random.choice(drawing.parts), bool(drawing.arrows) and random.random() < 0.5
    name, box = (part.name, part.name_box) if part.name_box else (part.letter, part.letter_box)
    boxes = tuple(each.name_box or each.letter_box for each in drawing.parts)
    plural = f"{drawing.noun}{'es' if drawing.noun.endswith('x') else 's'}"
    if is_of_arrows:
        index, leads_to = drawing.parts.index(part), random.random() < 0.5
        number = sum(pair[leads_to] == index for pair in drawing.arrows)
        question = f"How many arrows {'lead to' if leads_to else 'start from'} {name}?"
        boxes = (box,)
    else:
        number = len(drawing.parts)
        question = random.choice(
            (f"How many {plural} are there?", f"How many {plural} are in the diagram?", f"How many {plural} are shown?")
        )
    near = [count for count in COUNTS if count != str(number) and abs(int(count) - number) < 5]
    return _asked(random, question, str(number), near, boxes, boxes, "diagram_count", worked_out=True)


def _trait(random: Random, drawing: Drawing) -> Question | None:
    """Ask which part is at the top, the innermost, or of a colour."""
    told = [part for part in drawing.parts if part.traits]
    if not told:
        return None
    part = random.choice(told)
    trait = random.choice(part.traits)
    by_letter = part.name_box is None or (part.letter_box is not None and random.random() < 0.4)
    question = f"Which {'letter marks the part that' if by_letter else 'part'} is {trait}?"
    box = part.letter_box if by_letter else part.name_box
    answer, *others = ((each.letter if by_letter else each.name) for each in _first(drawing.parts, part))
    return _asked(random, question, answer, others, (box,), (box,), "diagram_trait")


def _first(parts: Sequence[Part], first: Part) -> list[Part]:
    return [first, *(part for part in parts if part is not first)]


def _missing(random: Random, drawing: Drawing) -> Question | None:
    """Ask which of four letters does not stand in the diagram."""
    letters = [part.letter for part in drawing.parts]
    if drawing.parts[0].letter_box is None or len(letters) < NUM_OPTIONS - 1:
        return None
    absent = random.choice([letter for letter in LETTERS if letter not in letters])
    boxes = tuple(part.letter_box for part in drawing.parts)
    question = "Which of these letters is not in the diagram?"
    asked = Question(
        question=question, answer=absent, kind="diagram_missing", find_boxes=boxes, copy_boxes=boxes, worked_out=True
    )
    return _with_options(random, asked, letters)


def _not_shown(random: Random, drawing: Drawing, split: Split) -> Question | None:
    """Ask openly about a name or a letter that does not stand in the diagram."""
    printed = {part.name.casefold() for part in drawing.parts}
    name = pseudo_word(random, split)
    letter = random.choice([each for each in LETTERS if each not in {part.letter for part in drawing.parts}])
    if drawing.parts[0].name_box is None or name.casefold() in printed:
        return None
    wordings = [*_after(drawing.noun, name), *_before(drawing.noun, name)] if drawing.arrows else []
    if drawing.parts[0].letter_box is not None:
        wordings += [f"What does letter {letter} name?", f"Which letter stands for {name}?"]
    return decline(random.choice(wordings)) if wordings else None


def _asked(
    random: Random,
    question: str,
    answer: str,
    others: Sequence[str],
    find_boxes: tuple[Box, ...],
    copy_boxes: tuple[Box, ...],
    kind: str,
    *,
    worked_out: bool = False,
) -> Question:
    asked = Question(
        question=question,
        answer=answer,
        kind=kind,
        find_boxes=find_boxes,
        copy_boxes=copy_boxes,
        worked_out=worked_out,
    )
    has_options = random.random() < SHARE_WITH_OPTIONS and len(others) >= NUM_OPTIONS - 1
    return _with_options(random, asked, others) if has_options else asked


def _with_options(random: Random, asked: Question, others: Sequence[str]) -> Question:
    """List the answer among three others as benchmarks do; what is replied is its letter."""
    place = random.randrange(NUM_OPTIONS)
    options = random.sample(list(others), NUM_OPTIONS - 1)
    options.insert(place, asked.answer)
    question = asked.question
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    text = random.choice(
        (
            f"{question}\n{listed}",
            f"{question}\n{listed}\nAnswer with the option's letter from the given choices directly.",
            f"Question: {question}\nOptions:\n{listed}\nPlease select the correct answer from the options above.",
        )
    )
    return replace(asked, question=text, answer=LETTERS[place], kind=f"{asked.kind}_options", worked_out=True)
