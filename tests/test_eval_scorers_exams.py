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
        ("So the answer is 8", "8", (1, 1, 0, 1, 1)),
        ("8.001", "8", (1, 1, 0, 1, 1)),
        ("The answer is 8.001", "8", (1, 1, 0, 1, 1)),
        ("It is Paris, France", "Paris", (1, 1, 0, 1, 0)),
        ("Paris", "Paris", (1, 1, 0, 1, 1)),
        ("FINAL ANSWER: Paris", "paris", (1, 1, 0, 1, 1)),
        ("no paris here", "Lyon", (0, 0, 0, 0, 0)),
        ("18", "8", (0, 0, 0, 1, 0)),
    ],
)
def test_an_open_question_is_judged_by_each_rule(reply, answer, points):
    assert tuple(score("mmmu", name, reply, answer) for name in MMMU_RULES) == points


def test_a_question_with_options_is_judged_as_multiple_choice():
    options = ("a river", "a lake", "a sea")
    assert [score("mmmu", name, "It is (B)", "B", options=options) for name in MMMU_RULES] == [1] * 5
    assert [judge("mmmu", name, "hm", "B", options=options).reason for name in MMMU_RULES] == ["unparsed"] * 5


# MathVista

SHAPES = ("a cube", "a ball", "a cone")
MATHS_RULES = ("mathvista_official", "vlmevalkit", "ours")


@pytest.mark.parametrize(
    ("reply", "answer", "case", "points"),
    [
        ("14", "14", {"answer_type": "integer"}, (1, 1, 1)),
        ("14.0", "14", {"answer_type": "integer"}, (None, None, 1)),
        ("The answer is 14", "14", {"answer_type": "integer"}, (None, None, 1)),
        ('The answer is "14.6".', "14", {"answer_type": "integer"}, (1, None, 0)),
        ("1.449", "1.45", {"answer_type": "float", "precision": 2}, (1, 0, 1)),
        ("1.449", "1.4", {"answer_type": "float", "precision": 1}, (1, 0, 1)),
        ("1.449", "1.4", {"answer_type": "float", "precision": 1.0}, (1, 0, 1)),
        ("1.449", "1.4", {"answer_type": "float", "precision": "1.0"}, (1, 0, 1)),
        ("1.449", "1.4", {"answer_type": "float", "precision": "x"}, (0, 0, 0)),
        ("$1.45", "1.45", {"answer_type": "float", "precision": 2}, (None, None, 1)),
        ("[2007, 2008]", "[2007, 2008]", {"answer_type": "list"}, (None, 0, 1)),
        ("[2008, 2007]", "[2007, 2008]", {"answer_type": "list"}, (None, 0, 0)),
        ("a ball", "B", {"options": SHAPES}, (1, 1, 1)),
        ('The answer is "(B) a ball".', "B", {"options": SHAPES}, (1, 1, 1)),
        ('The answer is "ball".', "B", {"options": SHAPES}, (1, None, None)),
        ("(B)", "B", {"options": SHAPES}, (None, 1, 1)),
        ("inf", "3", {"answer_type": "integer"}, (None, None, 0)),
    ],
)
def test_an_answer_is_brought_to_the_type_of_the_gold_answer(reply, answer, case, points):
    verdicts = [judge("mathvista", name, reply, answer, **case) for name in MATHS_RULES]
    assert tuple(None if verdict.reason == "unparsed" else verdict.value for verdict in verdicts) == points


# ChartQAPro

PRO_RULES = ("official", "vlmevalkit", "lmms_eval")


@pytest.mark.parametrize(
    ("reply", "answer", "question_type", "flags", "points"),
    [
        ("104", "100", "Factoid", ["NO"], (1, 1, 1)),
        ("104", "100", "Factoid", ["YES"], (0, 0, 0)),
        ("104", "100", "Fact Checking", ["NO"], (1, 1, 0)),
        ("104", "100", "Conversational", ["YES", "NO"], (1, 1, 1)),
        ("104%", "100", "Factoid", ["NO"], (1, 1, 1)),
        ("1.04", "104%", "Factoid", ["NO"], (0, 0, 0)),
        ("0.00", "0", "Factoid", ["NO"], (1, 1, 1)),
        ("unclear", "clear", "Factoid", ["NO"], (5 / 7, 5 / 7, 5 / 7)),
        ("abyz", "abcd", "Factoid", ["NO"], (0, 0, 0)),
        ("Paris.", "paris", "Factoid", ["YES"], (1, 1, 1)),
        ("[Peru, 2010]", "[Peru, 2010]", "Factoid", ["NO", "YES"], (0.0, 0.0, 0.0)),
        ("['Peru', 2011]", "[Peru, 2010]", "Factoid", ["NO", "YES"], (0.5, 0.5, 0.5)),
        ("['Peru', 2011]", "[Peru, 2010]", "Factoid", ["NO"], (1, 1, 1)),
        ("['Peru']", "[Peru, 2010]", "Factoid", ["NO"], (0.5, 0.5, 0.5)),
        ("<think>9</think>100", "100", "Factoid", ["NO"], (0, 0, 1)),
    ],
)
def test_a_list_is_judged_element_by_element(reply, answer, question_type, flags, points):
    case = {"question_type": question_type, "year_flags": flags}
    assert [score("chartqapro", name, reply, answer, **case) for name in PRO_RULES] == pytest.approx(list(points))


def test_a_question_without_flags_fails_where_the_harness_does():
    assert judge("chartqapro", "official", "1", "1", year_flags=[]).reason == "raises IndexError"
    assert score("chartqapro", "lmms_eval", "1", "1", year_flags=[]) == 1.0


# GSM8K and MGSM

GSM8K_RULES = ("llama_strict", "llama_flexible", "strict", "flexible")


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ("The final answer is 72", (1, 1, 0, 1)),
        ("The final answer is $72.", (1, 1, 0, 1)),
        ("The answer is 72.", (0, 1, 1, 1)),
        ("The answer is 7,2 of 9", (0, 0, 1, 0)),
        ("The final answer is 72.0", (0, 0, 0, 0)),
        ("The final answer is 5. The final answer is 72", (1, 1, 0, 1)),
        ("The answer is 5 no, The answer is 72 now", (0, 1, 0, 1)),
        ("seventy-two", (0, 0, 0, 0)),
    ],
)
def test_a_number_is_found_by_the_pattern_of_its_task(reply, points):
    names = [f"lm_eval_gsm8k_cot_{name}" for name in GSM8K_RULES]
    assert tuple(score("gsm8k", name, reply, "8 * 9 = 72\n#### 72") for name in names) == points


@pytest.mark.parametrize(
    ("reply", "answer", "language", "points"),
    [
        ("Answer: 72", "72", "en", 1),
        ("Antwort: 72", "72", "de", 1),
        ("Antwort: 72", "72", "en", 0),
        ("Answer: 7,200 in all", "7,200", "en", 1),
        ("Answer: 72.00", "72", "en", 1),
        ("Answer: 72.", "72", "en", 1),
        ("Answer: 3 of 72", "72", "en", 1),
        ("Answer: 5. Answer: 72", "72", "en", 1),
        ("Answer: -72", "-72", "en", 0),
        ("72", "72", "en", 0),
        ("Answer: 72", "72", "nl", None),
    ],
)
def test_the_last_number_after_the_word_for_answer_counts_without_its_sign(reply, answer, language, points):
    assert score("mgsm", "simple_evals", reply, answer, language=language) == points
