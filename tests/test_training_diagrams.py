"""The diagrams for training: what is printed is told, and answers follow from parts and arrows."""

import re
from collections import Counter

import numpy as np
import pytest

from vlm.training.reader.targets import SPELL, pointer_targets
from vlm.training.reader.vocabulary import reader_tokenizer
from vlm.training.synthetic.boxes import characters_in
from vlm.training.synthetic.diagrams import draw_diagram
from vlm.training.synthetic.questions import DECLINED
from vlm.training.synthetic.words import phrase_in_split

TOKENIZER = reader_tokenizer()


@pytest.fixture(scope="module")
def diagrams():
    return [
        draw_diagram(np.random.default_rng(seed), 272 + 100 * (seed % 3), split=("train", "held_out")[seed % 2])
        for seed in range(160)
    ]


@pytest.fixture(scope="module")
def asked(diagrams):
    return [(diagram, question) for diagram in diagrams for question in diagram.questions]


def spoken(question):
    """Return the question without options, and what is answered in words: of a letter, the option that it marks."""
    first, *lines = question.question.removeprefix("Question: ").split("\n")
    options = dict(line.split(". ", 1) for line in lines if re.match(r"[A-D]\. ", line))
    if question.kind.endswith("_options"):
        assert len(set(options.values())) == 4
        return first, options[question.answer], list(options.values())
    return first, question.answer, []


def printed(diagram, box):
    return "".join(character.char for character in characters_in(diagram.characters, box))


def test_names_and_letters_are_printed_in_their_boxes(diagrams):
    modes = Counter()
    for diagram in diagrams:
        for part in diagram.parts:
            for text, box in ((part.name, part.name_box), (part.letter, part.letter_box)):
                if box is not None:
                    assert printed(diagram, box) == text.replace(" ", "")
            modes[part.name_box is not None, part.letter_box is not None] += 1
        assert len({part.letter for part in diagram.parts}) == len({part.name for part in diagram.parts})
    assert set(modes) == {(True, True), (True, False), (False, True)}


def test_words_belong_to_the_split(diagrams):
    for seed, diagram in enumerate(diagrams):
        assert all(phrase_in_split(part.name, ("train", "held_out")[seed % 2]) for part in diagram.parts)


def answers_of(diagram, first, kind):
    """Return all right answers, worked out from parts and arrows and the words of the question."""
    parts = diagram.parts
    by_text = {part.name: place for place, part in enumerate(parts)} | {
        part.letter: place for place, part in enumerate(parts)
    }
    names = [text for text in by_text if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", first.removeprefix("A "))]
    place = by_text[max(names, key=len)] if names else None
    if kind in ("diagram_neighbour", "diagram_letter"):
        forwards = re.search(r"after|follows|from", first) is not None
        ends = [pair[forwards] for pair in diagram.arrows if pair[not forwards] == place]
        return [parts[end].name if kind == "diagram_neighbour" else parts[end].letter for end in ends]
    if kind == "diagram_named":
        return [parts[place].letter if re.match(r"Which l", first) else parts[place].name]
    if kind == "diagram_count" and "arrows" in first:
        return [str(sum(pair["lead to" in first] == place for pair in diagram.arrows))]
    if kind == "diagram_count":
        return [str(len(parts))]
    if kind == "diagram_trait":
        told = [part for part in parts if first.removesuffix("?").endswith(part.traits) and part.traits]
        return [part.letter if "letter" in first else part.name for part in told]
    return None


def test_answers_follow_from_parts_and_arrows(asked):
    seen = Counter()
    for diagram, question in asked:
        first, answer, options = spoken(question)
        kind = question.kind.removesuffix("_options")
        if kind == "declined":
            assert question.answer == DECLINED
        elif kind == "diagram_missing":
            assert [option for option in options if option not in {part.letter for part in diagram.parts}] == [answer]
        else:
            right = answers_of(diagram, first, kind)
            assert right == [answer], (first, diagram.parts, diagram.arrows)
            assert sum(option in right for option in options) <= 1
        seen[kind, bool(options)] += 1
    assert {kind for kind, _ in seen} == {
        "declined", "diagram_missing", "diagram_neighbour", "diagram_letter", "diagram_named", "diagram_count",
        "diagram_trait",
    }  # fmt: skip
    assert 0.4 < sum(number for (_, with_options), number in seen.items() if with_options) / seen.total() < 0.8


def test_the_right_options_are_spread_over_the_letters(asked):
    letters = Counter(question.answer for _, question in asked if question.kind.endswith("_options"))
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 0.35 * letters.total()


def test_what_is_declined_is_not_there(asked):
    for diagram, question in asked:
        if question.kind == "declined" and "letter " not in question.question:
            assert not any(part.name in question.question for part in diagram.parts)


def test_pointers_of_a_name_lie_on_its_characters(asked):
    checked = 0
    for diagram, question in asked:
        prompt, reply = TOKENIZER.encode(question.question), [*TOKENIZER.encode(question.answer), TOKENIZER.eot_id]
        pointers = pointer_targets(TOKENIZER, diagram, question, prompt, reply, 8, (64, 64))
        spelt = pointers.places[pointers.numbers[SPELL.start]]
        if question.worked_out or question.kind == "declined":
            assert not spelt.any()
        elif question.kind == "diagram_named":
            assert spelt[len(prompt) - 1 : -1].any(-1).all()
            checked += 1
    assert checked > 10


def test_the_same_seed_gives_the_same_diagram():
    once, again = (draw_diagram(np.random.default_rng(9), (200, 300)) for _ in range(2))
    assert once.image.tobytes() == again.image.tobytes()
    assert once.questions == again.questions
    assert once.image.size == (300, 200)


def test_a_size_too_small_for_any_diagram_is_refused():
    with pytest.raises(ValueError, match=r"no diagram fits in 30 pixels after \d+ tries; expected at least"):
        draw_diagram(np.random.default_rng(0), 30)
