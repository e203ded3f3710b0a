"""Multiple choice: how harnesses read a letter, how ours does, and what none of them may do: guess."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scorers import SCORERS, judge, score
from eval.scorers.multiple_choice_ours import read_choice

BIRD = ("beak", "wing", "tail", "claw")
LABELS = ("B", "D", "A", "E")
AI2D, EXTRACT, MMMU_COPY = "lmms_eval_ai2d", "lmms_eval_mcq_extract", "lmms_eval_mmmu_parser"
KIT, SCOPE, CAMBRIAN = "vlmevalkit_exact_matching", "evalscope_ai2d", "cambrian_ai2d"
QWEN, MOLMO, MMMU, STACK = (
    "qwen_vl_exact_letter",
    "molmo_letter_options",
    "mmmu_official_parser",
    "llama_stack_regex_mc",
)
PRO, OURS = "mmmu_pro_official", "ours"
EVERYBODY = {AI2D, EXTRACT, MMMU_COPY, KIT, SCOPE, CAMBRIAN, QWEN, MOLMO, MMMU, STACK, PRO, OURS}

CASES = [
    ("C", BIRD, "C", EVERYBODY - {STACK}, "the letter alone"),
    ("c", BIRD, "C", {AI2D, CAMBRIAN, QWEN, MOLMO, OURS}, "in small"),
    ("C.", BIRD, "C", EVERYBODY - {STACK, QWEN}, "a period"),
    ("C. tail", BIRD, "C", {AI2D, EXTRACT, MMMU_COPY, PRO, KIT, SCOPE, CAMBRIAN, OURS}, "letter and text"),
    ("C) tail", BIRD, "C", {EXTRACT, KIT, SCOPE, CAMBRIAN, OURS}, "half a bracket"),
    ("(C) tail", BIRD, "C", {EXTRACT, MMMU_COPY, PRO, MMMU, KIT, SCOPE, CAMBRIAN, OURS}, "brackets"),
    ("`C`", BIRD, "C", {AI2D, EXTRACT, SCOPE, MOLMO, OURS}, "markup"),
    ("\\boxed{C}", BIRD, "C", {EXTRACT, KIT, SCOPE, OURS}, "a LaTeX box"),
    ("Tail", BIRD, "C", {KIT, OURS}, "the text"),
    ("3", BIRD, "C", {OURS}, "the number"),
    ("3", BIRD, "D", {CAMBRIAN}, "an index from nought"),
    ("FINAL ANSWER: 3", BIRD, "C", {OURS}, "the number that Meta's prompt asks for"),
    ("FINAL ANSWER: C", BIRD, "C", EVERYBODY - {AI2D, QWEN, MOLMO}, "the last word"),
    ("Answer: C", BIRD, "C", EVERYBODY - {AI2D, QWEN}, "a marker"),
    ("The best answer is C", BIRD, "C", EVERYBODY - {AI2D, QWEN, MOLMO}, "Meta's sentence"),
    ("The best answer is B. No, the best answer is C.", BIRD, "C", EVERYBODY - {AI2D, KIT, QWEN, MOLMO, STACK}, "two"),
    ("A bird has it. FINAL ANSWER: C", BIRD, "C", EVERYBODY - {AI2D, EXTRACT, KIT, QWEN, MOLMO}, "an article first"),
    ("<think>B?</think>C", BIRD, "C", {AI2D, EXTRACT, MMMU_COPY, PRO, SCOPE, OURS}, "reasoning before the letter"),
    ("<think>B?</think>C. tail", BIRD, "C", {EXTRACT, MMMU_COPY, PRO, SCOPE, KIT, OURS}, "the filter looks first"),
    ("A. beak\nB. wing\nC. tail\nD. claw\nAnswer: C", BIRD, "C", EVERYBODY - {AI2D, EXTRACT, KIT, QWEN}, "echoed"),
    ("ANSWER: **(C)** is right", BIRD, "C", {EXTRACT, MMMU_COPY, PRO, MMMU, KIT, SCOPE, OURS}, "marked up"),
    ("ANSWER: C, not D", BIRD, "C", {SCOPE, CAMBRIAN, STACK, OURS}, "with what it is not"),
    ("Both B and C", BIRD, "C", {EXTRACT, MMMU_COPY, PRO, MMMU, SCOPE}, "two letters"),
    ("It is the tail of it, surely", BIRD, "C", {MMMU_COPY, PRO, MMMU, KIT, OURS}, "the text in a sentence"),
    ("WE NEVER SAW A TAB", BIRD, "B", {SCOPE, EXTRACT}, "the last capital of a word"),
    ("Only the USA has it", BIRD, "A", {EXTRACT, MMMU_COPY, PRO, SCOPE, MOLMO}, "a word that ends in a letter"),
    ("B. D", LABELS, "B", {AI2D, EXTRACT, CAMBRIAN, MOLMO, OURS}, "a letter and its text, itself a letter"),
    ("D", LABELS, "D", EVERYBODY - {STACK}, "a letter that is also the text of another option"),
    ("the one labelled D", LABELS, "B", {OURS}, "the text, said to be a label"),
    ("It must be D here", LABELS, "D", EVERYBODY - {AI2D, CAMBRIAN, QWEN, MOLMO, STACK, OURS}, "either"),
    ("7", ("3", "5", "7", "9"), "C", {KIT, OURS}, "a number that is a text"),
    ("It is not C", BIRD, "C", EVERYBODY - {AI2D, CAMBRIAN, QWEN, STACK, OURS}, "a denial"),
    ("C as my pick", BIRD, "C", {EXTRACT, MMMU_COPY, MMMU, PRO, KIT, SCOPE, CAMBRIAN, OURS}, "four words from the end"),
    ("C as my own pick", BIRD, "C", {EXTRACT, MMMU_COPY, MMMU, PRO, SCOPE, CAMBRIAN, OURS}, "five words from the end"),
    ("", BIRD, "A", {MOLMO}, "nothing, which is nearest to the first letter"),
    ("I cannot see it", BIRD, "B", set(), "a refusal"),
    ("Cannot determine the answer. B", BIRD, "B", {EXTRACT, MMMU_COPY, MMMU, PRO, SCOPE, OURS}, "a known refusal"),
    ("(A) is small. Answer: C", BIRD, "C", {EXTRACT, PRO, SCOPE, CAMBRIAN, MOLMO, STACK, OURS}, "a bracket before"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "options", "answer", "right", "why"), CASES, ids=[f"{c[0]!r}" for c in CASES])
def test_each_rule_decides_as_its_harness_does(reply, options, answer, right, why):
    points = {name for name in EVERYBODY if score("ai2d", name, reply, answer, options=options) == 1.0}
    assert points == right, why


def test_the_table_of_cases_tells_every_two_rules_apart():
    verdicts = {name: tuple(name in right for *_, right, _ in CASES) for name in EVERYBODY}
    assert len(set(verdicts.values())) == len(EVERYBODY)


# What draws lots elsewhere


@pytest.mark.parametrize("name", [MMMU, MMMU_COPY, PRO])
@pytest.mark.parametrize("reply", ["", "?", "I would rather not say", "the third one"])
def test_where_a_harness_draws_lots_the_reply_is_unparsed(name, reply):
    for answer in "ABCD":
        assert judge("ai2d", name, reply, answer, options=BIRD) == (0.0, None, "unparsed")


@settings(max_examples=80, deadline=None)
@given(st.text(), st.sampled_from(sorted(EVERYBODY)))
def test_a_verdict_does_not_depend_on_which_option_is_right(reply, name):
    """A rule that looked at the answer could not be trusted; one that drew lots would differ from itself."""
    points = [score("ai2d", name, reply, answer, options=BIRD) for answer in "ABCD"]
    assert points == [score("ai2d", name, reply, answer, options=BIRD) for answer in "ABCD"]
    assert sum(points) <= 1


@settings(max_examples=80, deadline=None)
@given(
    st.permutations(["beak", "wing", "tail", "claw"]), st.sampled_from(["beak", "the claw", "I see no wing", "Tail!"])
)
def test_an_option_named_by_its_text_is_found_wherever_it_stands(options, reply):
    choice = read_choice(reply, options)
    named = [text for text in options if text in reply.lower()]
    assert choice is not None
    assert [options[choice.place]] == named


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="ABCD", min_size=2, max_size=6).filter(lambda letters: len(set(letters)) > 1))
def test_several_letters_are_no_choice(letters):
    for joined in (", ".join(letters), " or ".join(letters), "/".join(letters), "\n".join(letters)):
        assert read_choice(joined, BIRD) is None


# How ours reads


@pytest.mark.parametrize(
    ("reply", "options", "numbered", "chosen"),
    [
        ("(b)", BIRD, False, "B by letter"),
        ("**Option B**", BIRD, False, "B by letter"),
        ("B: wing, since it is broad", BIRD, False, "B by letter"),
        ("The correct option is (B).", BIRD, False, "B by letter"),
        ("So B is right.", BIRD, False, "B by letter"),
        ("Looking at it, I take option B here.", BIRD, False, "B by letter"),
        ("Looking at it, I take option number 2 here.", BIRD, False, "B by number"),
        ("A is right.", BIRD, False, "A by letter"),
        ("A wing.", BIRD, False, "B by text"),
        ("B This one is broad, unlike (C).", BIRD, False, "B by letter"),
        ("A Birds have one each.", BIRD, False, "A by letter"),
        ("I think it is B.", BIRD, False, "B by letter"),
        ("B\n\nA is wrong because it is small.", BIRD, False, "B by letter"),
        ("1. Look at it.\n2. Compare.\nIt is the wing.", BIRD, False, "B by text"),
        ("A. beak: no\nB. wing: no\nSo it must be the tail.", BIRD, False, "C by text"),
        ("option number 2", BIRD, False, "B by number"),
        ("2. wing", BIRD, False, "B by number"),
        ("2", ("9", "8", "2", "1"), False, "C by text"),
        ("2", ("9", "8", "2", "1"), True, "B by number"),
        ("D", LABELS, True, "B by text"),
        ("it is (2)", BIRD, True, "B by number"),
        ("the point marked E", LABELS, False, "D by text"),
        ("big wing", ("wing", "big wing"), False, "B by text"),
        ("the big wing of it", ("wing", "big wing"), False, "B by text"),
    ],
)
def test_an_option_is_read_by_letter_number_or_text(reply, options, numbered, chosen):
    choice = read_choice(reply, options, numbered=numbered)
    assert f"{'ABCD'[choice.place]} by {choice.route}" == chosen


@pytest.mark.parametrize(
    "reply",
    [
        *("", "E", "5", "0", "I see", "FINAL ANSWER:", "a - thing", "1. Look at it.", "winged"),
        *(
            "B, C",
            "B, B or C",
            "B or C",
            "B. tail",
            "beak and tail",
            "A Wing",
            "(B, C) Both",
            "A. beak\nB. wing\nC. tail\nD. claw",
        ),
        *("not B", "It isn't (B).", "It is the wing, not the tail."),
    ],
)
def test_what_names_no_option_or_more_than_one_is_unparsed(reply):
    assert judge("ai2d", "ours", reply, "B", options=BIRD) == (0.0, None, "unparsed")


@settings(max_examples=80, deadline=None)
@given(st.text(), st.lists(st.text(max_size=8), min_size=1, max_size=10), st.booleans())
def test_ours_reads_an_option_that_exists_or_none(reply, options, numbered):
    choice = read_choice(reply, options, numbered=numbered)
    assert choice is None or 0 <= choice.place < len(options)


# Without reading


def test_the_most_likely_option_is_chosen_by_sum_or_by_mean():
    case = {"options": BIRD, "option_scores": [(-4.0, 2), (-3.0, 1), (-9.0, 9), (-8.0, 4)]}
    assert judge("ai2d", "likelihood", "anything", "B", **case) == (1.0, "B", None)
    assert judge("ai2d", "likelihood_mean", "anything", "C", **case) == (1.0, "C", None)


def test_an_option_that_is_not_offered_is_never_the_likeliest():
    case = {"options": ("", "x", "y"), "option_scores": [None, (-2.0, 1), (-3.0, 1)]}
    assert judge("ai2d", "likelihood", "", "B", **case) == (1.0, "B", None)


def test_a_tie_of_likelihoods_is_no_choice():
    case = {"options": ("x", "y", "z"), "option_scores": [(-1.0, 1), (-2.0, 1), (-1.0, 1)]}
    assert judge("ai2d", "likelihood", "", "A", **case) == (0.0, None, "unparsed")


@pytest.mark.parametrize("case", [{}, {"option_scores": []}, {"option_scores": [(-1.0, 1)]}])
def test_without_a_likelihood_for_each_option_the_rule_does_not_apply(case):
    assert score("ai2d", "likelihood", "A", "A", options=BIRD, **case) is None


def test_rules_that_need_options_do_not_apply_without_them():
    need = {name for family, name in SCORERS if family == "multiple_choice"} - {AI2D, CAMBRIAN, QWEN, STACK}
    assert all(score("ai2d", name, "A", "A") is None for name in need)


def test_an_empty_column_is_no_option():
    assert judge("ai2d", KIT, "A", "A", options=("", "wing", "tail")).reason == "unparsed"
