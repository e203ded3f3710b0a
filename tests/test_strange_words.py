"""Words and years of no list: what is changed, what is not, and that nothing of the held-out split is made."""

import re
from random import Random

import numpy as np
import pytest

from vlm.training.synthetic.charts import ask, draw_chart
from vlm.training.synthetic.spec import draw_spec
from vlm.training.synthetic.strange_words import with_strange_words
from vlm.training.synthetic.words import YEARS, in_split, is_unwelcome

SHAPE = (400, 544)


@pytest.fixture(scope="module")
def pairs():
    """Contents before and after every word was to be changed."""
    specs = [draw_spec(Random(seed), "train", 1.0, SHAPE) for seed in range(150)]
    return [(spec, with_strange_words(Random(seed), spec, 1.0)) for seed, spec in enumerate(specs)]


def texts(spec) -> str:
    return " ".join((spec.title, spec.subtitle, spec.topic, *spec.labels, *spec.series_names))


def test_no_word_and_no_year_of_the_held_out_split_is_made(pairs):
    for before, after in pairs:
        old = {word.lower() for word in re.findall(r"[A-Za-z]{3,}", texts(before))}
        for word in re.findall(r"[A-Za-z]+", texts(after)):
            assert word.lower() in old or in_split(word, "train") or len(word) < 3
            assert word.lower() in old or not is_unwelcome(word.lower())
        for year in re.findall(r"(?<!\d)\d{4}(?!\d)", texts(after) if before.label_kind == "year" else after.title):
            assert not YEARS["held_out"][0] <= int(year) <= YEARS["held_out"][1]


def test_most_words_change_and_labels_stay_apart(pairs):
    changed = [before.labels != after.labels for before, after in pairs]
    assert sum(changed) > 100
    for before, after in pairs:
        assert len({*after.labels}) == len(before.labels)
        assert after.numbers == before.numbers
        if before.label_kind == "month":
            assert after.labels == before.labels


def test_years_keep_their_order_and_their_steps(pairs):
    moved = 0
    for before, after in pairs:
        if before.label_kind == "year" and all(re.fullmatch(r"\d{4}", label) for label in before.labels):
            shifts = {int(new) - int(old) for new, old in zip(after.labels, before.labels, strict=True)}
            assert len(shifts) == 1
            moved += shifts != {0}
    assert moved > 5


def test_the_same_word_becomes_the_same_one_wherever_it_stands():
    """So that a question names what is printed."""
    for seed in range(20):
        chart = draw_chart(np.random.default_rng(seed), SHAPE, strangeness=1.0)
        printed = "".join(character.char for character in chart.characters)
        for question in ask(np.random.default_rng(seed), chart, 6):
            if question.kind in ("title", "reverse", "highest", "lowest"):
                assert question.answer.replace(" ", "") in printed
            assert question.kind != "named_value" or any(label in question.question for label in chart.spec.labels)


def test_nothing_is_changed_where_nothing_is_to_be():
    spec = draw_spec(Random(4), "train", 1.0, SHAPE)
    assert with_strange_words(Random(0), spec, 0.0) == spec
    plain, strange = (draw_chart(np.random.default_rng(3), SHAPE, strangeness=share) for share in (0.0, 1.0))
    assert plain.spec.labels != strange.spec.labels
