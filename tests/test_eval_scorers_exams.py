"""MMMU, MathVista, ChartQAPro, GSM8K and MGSM: open answers, typed answers, lists, and numbers in prose."""

import pytest

from eval.scorers import judge, score
from eval.scorers.mmmu import candidates, key_parts, normalised

# MMMU


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        ("The area is 12.", ["12"]),
        ("First it is 3\nso it could be 4", ["3", "4"]),
        ("x = 5", ["5"]),
        ("x = 5\nand done", ["x = 5\nand done"]),
        ("Therefore the result is = 7", ["7"]),
        ("The answer is :", ["the answer is :"]),
        ("Plain words.", ["plain words"]),
    ],
)
def test_the_parts_of_an_open_reply_that_may_hold_its_answer(reply, parts):
    assert key_parts(reply) == parts


def test_texts_are_compared_as_numbers_of_two_decimals_or_in_small_letters():
    assert normalised(" 1,234.567 ") == [1234.57]
    assert normalised("B") == [" b", "b "]
    assert normalised("Paris") == ["paris"]
    assert 1200.0 in candidates("It is 1,200 and 3e2 and .5")
    assert {300.0, 0.5} <= set(candidates("It is 1,200 and 3e2 and .5"))


MMMU_RULES = ("mmmu_official", "lmms_eval_functions_without_flattening", "lmms_eval_pipeline", "vlmevalkit", "ours")


@pytest.mark.parametrize(
    ("reply", "answer", "points"),
    [
        ("So the answer is 8", "8", (1, 1, 0, 1, 0)),
        ("8.001", "8", (1, 1, 0, 1, 1)),
        ("The answer is 8.001", "8", (1, 1, 0, 1, 1)),
        ("It is Paris, France", "Paris", (1, 1, 0, 0, 0)),
        ("Paris", "Paris", (1, 1, 0, 1, 1)),
        ("FINAL ANSWER: Paris", "paris", (1, 1, 0, 0, 1)),
        ("no paris here", "Lyon", (0, 0, 0, 0, 0)),
        ("18", "8", (0, 0, 0, 1, 0)),
    ],
)
def test_an_open_question_is_judged_by_each_rule(reply, answer, points):
    assert tuple(score("mmmu", name, reply, answer) for name in MMMU_RULES) == points
