"""ChartQA's rules: where they part company, on cases of our own, and what ours adds to them."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scorers import judge, score
from eval.scorers.answer import final_answer, marked_answer, short_answer
from eval.scorers.chartqa_ours import list_elements
from eval.scorers.quantity import read_quantity
from eval.scorers.reasoning import without_reasoning

WHOLE = {"pix2struct", "lmms_eval", "vlmevalkit", "qwen_vl", "internvl", "molmo", "cambrian", "unichart"}
SWAPPED = {"qwen_vl", "internvl"}
NO_PERCENT = {"cambrian", "unichart"}
ANYWHERE = {"mistral_anywhere", "lm_eval_anywhere_accuracy"}
AFTER_ANSWER = {"mistral_explicit", "lm_eval_relaxed_accuracy", *ANYWHERE}
LM_EVAL = {"lm_eval_exact_match", "lm_eval_relaxed_accuracy", "lm_eval_anywhere_accuracy"}
LOOSE = {"mistral_relaxed", "ours", "ours_years_exact"}
ONE_ANSWER = {"lmms_eval", "cambrian", "unichart", "evalscope"}
EVERYBODY = WHOLE | AFTER_ANSWER | LOOSE | LM_EVAL | {"evalscope"}
OURS = {"ours", "ours_years_exact"}

CASES = [
    # A bare reply: numbers and the tolerance.
    ("210", "200", WHOLE | LOOSE, "exactly 5 % above, and the binary numbers are exact"),
    ("190", "200", (WHOLE - SWAPPED) | LOOSE, "exactly 5 % below is more than 5 % of the reply"),
    ("4.2", "4", SWAPPED | ANYWHERE | OURS, "4.2 is more than 5 % above 4 in binary; the digit 4 occurs in it"),
    ("315.3", "300", SWAPPED, "5.1 % of the answer is less than 5 % of the reply"),
    ("3.8", "4", OURS, "exactly 5 % below in decimals alone"),
    ("1987", "2012", WHOLE | {"mistral_relaxed", "ours"}, "another year within 5 %"),
    ("-31", "31", ANYWHERE, "a sign counts; the digits occur"),
    ("7.", "7", WHOLE | LOOSE | ANYWHERE, "Python reads the period"),
    ("2e2", "200", WHOLE | LOOSE, "an exponent"),
    ("2_00", "200", WHOLE | {"mistral_relaxed"}, "Python reads underscores, people do not write them"),
    ("nan", "nan", OURS, "not a number is not within 5 % of itself; as texts they are equal"),
    ("٧", "7", WHOLE | {"mistral_relaxed"}, "Python reads the digits of every script"),
    ("８", "8", WHOLE | LOOSE, "full-width digits are digits"),
    # A gold answer of zero.
    ("0.00", "0", {"cambrian", "unichart"} | LOOSE | ANYWHERE, "zero by another name"),
    ("0", "0", WHOLE | LOOSE | ANYWHERE, "zero by its own name"),
    ("0.001", "0", ANYWHERE, "nothing but zero is near zero; the digit occurs"),
    ("0", "0.2", set(), "zero is no answer to something else"),
    # Percent signs.
    ("38%", "0.38", (WHOLE - NO_PERCENT) | LOOSE, "a percentage and its fraction"),
    ("38%", "38", LOOSE | ANYWHERE, "a percent sign on one side"),
    ("38", "38%", LOOSE, "a percent sign on the other"),
    ("38 %", "38%", (WHOLE - NO_PERCENT) | LOOSE, "a blank before the sign"),
    ("38 percent", "38%", OURS, "the word"),
    ("-4%", "-0.04", (WHOLE - NO_PERCENT) | LOOSE, "a negative percentage"),
    # Thousands, currencies, minus signs.
    ("45,600", "45600", LOOSE | ANYWHERE, "a comma between thousands"),
    ("1,02", "102", {"mistral_relaxed"}, "a decimal comma read as one of thousands"),
    ("1,02", "1.02", OURS, "a decimal comma"),
    ("12 500", "12500", OURS, "a blank between thousands"),
    ("1.234.567,5", "1234567.5", OURS, "points between thousands and a decimal comma"),
    ("£80", "80", OURS | ANYWHERE, "a pound sign"),
    ("$80", "80", LOOSE | ANYWHERE, "a dollar sign"),
    ("$80", "€80", set(), "two currencies"),
    ("−17", "-17", OURS, "a true minus sign"),
    ("1:5", "0.2", set(), "a ratio is no number"),
    ("three", "3", set(), "nor is a word"),
    # Texts.
    ("yes", "Yes", WHOLE | LOOSE, "case"),
    ("No\n", "No", {"lmms_eval", "vlmevalkit", "qwen_vl", "internvl", "molmo"} | OURS, "a newline at the end"),
    (" No", "No", {"lmms_eval", "vlmevalkit", "qwen_vl", "internvl", "molmo", "unichart"} | OURS, "a blank before"),
    ("'No'", "No", LOOSE, "quotes"),
    ("No.", "No", OURS, "an end period"),
    ("**No**", "No", OURS, "markdown"),
    ("Peru", "P", {"mistral_relaxed"}, "a one-letter answer takes the first letter of the reply"),
    ("18–34", "18-34", OURS, "a dash between numbers"),
    ("dark red", "red", set(), "a longer answer"),
    ("soft_pink", "soft_pink", WHOLE | LOOSE, "an underscore belongs to a label"),
    ("5²", "52", set(), "a power is no digit"),
    ("CO₂", "CO2", OURS, "a number in a formula may be"),
    # Lists.
    ("[3, 4]", "[3, 4]", (WHOLE - {"vlmevalkit"}) | LOOSE, "the same list; one harness takes its elements for choices"),
    ("[4, 3]", "[3, 4]", OURS, "another order"),
    ("4 and 3", "[3, 4]", OURS, "in words"),
    ("4", "[3, 4]", {"vlmevalkit"}, "one element"),
    ("[3, 4, 5]", "[3, 4]", set(), "an element too many"),
    ("Perú, Chile", "['Chile', 'Perú']", OURS, "a list of words"),
    # Behind a marker.
    ("FINAL ANSWER: 61", "60", {"evalscope"} | AFTER_ANSWER | OURS, "capitals"),
    ("**Final Answer:** 60", "60", AFTER_ANSWER | OURS, "markdown around the marker"),
    ("Final Answer:\n\n60", "60", AFTER_ANSWER | {"molmo"} | OURS, "the answer on a later line"),
    ("Answer: 60", "60", AFTER_ANSWER | {"molmo"} | OURS, "a short marker"),
    ("Final answer: Yes.", "Yes", {*LM_EVAL} | OURS, "a period"),
    ("FINAL ANSWER: 6,100", "6100", AFTER_ANSWER | OURS, "a comma"),
    ("FINAL ANSWER: soft_pink", "soft_pink", {"evalscope", "lm_eval_exact_match"} | OURS, "the underscore is deleted"),
    ("FINAL ANSWER: [3, 4]", "[3, 4]", {"evalscope", "lm_eval_exact_match"} | OURS, "the brackets are deleted"),
    ("Final Answer: \\boxed{60}", "60", OURS, "a LaTeX box"),
    ("Answer: 9. No, answer: 60", "60", AFTER_ANSWER | OURS, "the last of two"),
    ("Answer: 60\nAnswer: 9", "60", {"molmo"}, "the first of two, which one takes"),
    ("ANSWER: 9\nANSWER: 60", "60", {"evalscope"} | AFTER_ANSWER | OURS, "the last of two in capitals"),
    ("FINAL ANSWER: - 60", "60", set(), "a minus before a blank"),
    ("FINAL ANSWER: 60 million", "60", set(), "a unit"),
    ("FINAL ANSWER:", "60", set(), "nothing behind it"),
    ("FINAL ANSWER: 60\nThe bar shows 60.", "60", {"evalscope"} | AFTER_ANSWER | OURS, "more lines"),
    # In prose.
    ("The bars are 3 and 60, so 60 is larger", "60", ANYWHERE, "a number in a sentence"),
    ("The bars are 600 and 3", "60", ANYWHERE, "digits of another number"),
    ("it was peru.", "Peru", ANYWHERE, "a word after was, in small letters"),
    ("It was Peru.", "Peru", set(), "the same in capitals"),
    ("The answer is 60.", "60", ANYWHERE | OURS, "a sentence that marks its answer"),
    ("60\n60\n61", "60", {"molmo"} | ANYWHERE, "the line given most often"),
    ("<think>It is 3.</think>60", "60", {"lmms_eval"} | ANYWHERE | OURS, "reasoning between tags"),
    ("60 <think>Sure.</think>", "60", {"lmms_eval"} | ANYWHERE | OURS, "reasoning behind the answer"),
    ("", "60", set(), "nothing at all"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "answer", "right", "why"), CASES, ids=[f"{c[0]!r}-{c[1]!r}" for c in CASES])
def test_each_rule_decides_as_its_harness_does(reply, answer, right, why):
    given_points = {name for name in EVERYBODY if score("chartqa", name, reply, answer) == 1.0}
    assert given_points == set(right), why


def test_the_table_of_cases_tells_every_two_rules_apart():
    verdicts = {name: tuple(name in right for _, _, right, _ in CASES) for name in EVERYBODY}
    twins = {frozenset(SWAPPED)}
    alike = {frozenset({a, b}) for a in verdicts for b in verdicts if a < b and verdicts[a] == verdicts[b]}
    assert alike == twins


@pytest.mark.parametrize("name", sorted(EVERYBODY))
def test_several_accepted_answers(name):
    accepted = ["Blue", "61", "Navy"]
    if name in ONE_ANSWER:
        assert score("chartqa", name, "61", accepted) is None
        return
    behind = {"mistral_explicit", "mistral_anywhere"}
    reply = "Final Answer: navy" if name in behind or name.startswith("lm_eval") else "navy"
    # lm-evaluation-harness looks at the first accepted answer alone.
    assert score("chartqa", name, reply, accepted) == (0.0 if name.startswith("lm_eval") else 1.0)
    assert score("chartqa", name, reply, ["Navy", "Blue"]) == 1.0


@pytest.mark.parametrize("name", ["mistral_anywhere", "lm_eval_anywhere_accuracy"])
def test_a_harness_that_fails_gives_no_point_and_its_failure(name):
    assert judge("chartqa", name, "no idea", "inf") == (0.0, None, "raises OverflowError")


def test_a_list_of_no_elements_fails_as_in_its_harness():
    assert judge("chartqa", "vlmevalkit", "[]", "[]") == (0.0, None, "raises ValueError")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (" a<think>b</think>c<analysis>d</analysis>e<think></think> ", "ace"),
        ("b</think>c</think> d", "d"),
        ("a<think>b", "a<think>b"),
        ("</think>a<think>b", "</think>a<think>b"),
        ("<THINK>a</THINK>", "<THINK>a</THINK>"),
    ],
)
def test_reasoning_is_taken_out_as_lmms_eval_does(text, left):
    assert without_reasoning(text) == left


# What our rule takes for the answer


@pytest.mark.parametrize(
    ("reply", "marked", "final"),
    [
        ("12", None, "12"),
        ("  12 \n", None, "12"),
        ("FINAL ANSWER: 12", "12", "12"),
        ("FINAL ANSWER 12", "12", "12"),
        ('As "FINAL ANSWER": 12', "12", "12"),
        ("**FINAL ANSWER**: **12**", "12", "12"),
        ("Final answer is 12", "12", "12"),
        ("final choice: 12", "12", "12"),
        ("The answer: 3. FINAL ANSWER: 12. The answer: 4", "12. The answer: 4", "12. The answer: 4"),
        ("answer: 3\n\\boxed{12}", "12", "12"),
        ("\\boxed{\\text{dark {red}}}", "\\text{dark {red}}", "\\text{dark {red}}"),
        ("\\boxed{12", None, "\\boxed{12"),
        ("FINAL ANSWER: $\\boxed{12}$", "12", "12"),
        ("FINAL ANSWER: - twelve", "twelve", "twelve"),
        ("FINAL ANSWER: - 12", "- 12", "- 12"),
        ("FINAL ANSWER:\n-  US$.5", "-  US$.5", "-  US$.5"),
        ("FINAL ANSWER - 12", "12", "12"),
        ("FINAL ANSWER: -12", "-12", "-12"),
        ("FINAL ANSWER:\n**\n12", "12", "12"),
        ("FINAL ANSWER:", "", None),
        ("I give the final answer below.\n12", None, None),
        ("one\ntwo", None, None),
        ("word " * 21, None, None),
        ("", None, None),
        ("<think>FINAL ANSWER: 3</think>12", None, "12"),
        ("FINAL ANSWER: 3</think>12", None, "12"),
    ],
)
def test_what_is_taken_for_the_answer(reply, marked, final):
    assert marked_answer(reply) == marked
    assert final_answer(reply) == final


def test_where_the_answer_alone_was_asked_for_a_long_reply_is_the_answer():
    assert short_answer("12 Main Street\nBoston") == "12 Main Street\nBoston"
    assert short_answer(" ") is None


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1,234.5", "1234.5", ""),
        ("12,34,567", "1234567", ""),
        ("1’234", "1234", ""),
        ("1 234,5", "1234.5", ""),
        ("0,25", "0.25", ""),
        (".5", "0.5", ""),
        ("+7", "7", ""),
        ("-$5", "-5", "$"),
        ("$-5", "-5", "$"),
        ("US$ 5", "5", "$"),
        ("5 EUR", "5", "€"),
        ("12.5%.", "12.5", "%"),
        ("1.5e-3", "0.0015", ""),
        ("– 3", "-3", ""),
    ],
)
def test_numbers_are_read_exactly(text, value, unit):
    quantity = read_quantity(text)
    assert (quantity.value, quantity.unit) == (Fraction(value), unit)


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "$", "%", "nan", "inf", "five", "5 million", "0x10", "٣"),
        *("1_000", "1,2,3", "0,123", "2010,2011", "1/2", "1:2", "1 2", "5-", "1e9999", "9" * 61),
        *("--5", "-$-5", "$5€", "5 %%", "5²", "10⁻³", "5₂", "²"),
    ],
)
def test_what_is_no_number_stays_a_text(text):
    assert read_quantity(text) is None


@settings(max_examples=80, deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_is_read_as_it_is_written_with_and_without_commas(number):
    assert read_quantity(f"{number}").value == read_quantity(f"{number:,}").value == Fraction(str(number))


@settings(max_examples=80, deadline=None)
@given(
    gold=st.integers(min_value=1, max_value=10**6),
    places=st.integers(min_value=0, max_value=4),
    thousandths=st.integers(min_value=-60, max_value=60),
)
def test_the_tolerance_is_exactly_five_percent_in_decimals(gold, places, thousandths):
    target = Decimal(gold).scaleb(-places)
    reply = target * (1000 + thousandths) / 1000
    assert score("chartqa", "ours", f"{reply:f}", f"{target:f}") == float(abs(thousandths) <= 50)


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("[a, b]", ["a", "b"]),
        ("['a, b', 'c']", ["a, b", "c"]),
        ("[2010,2011]", ["2010", "2011"]),
        ("1,000, 2,000", ["1,000", "2,000"]),
        ("1,000 and 2,000", ["1,000", "2,000"]),
        ("1,000,2,000", ["1,000", "2,000"]),
        ("100,200", ["100", "200"]),
        ("a, b, and c.", ["a", "b", "c"]),
        ("a; b", ["a", "b"]),
        ("[]", []),
    ],
)
def test_the_elements_of_a_list(text, elements):
    assert list_elements(text) == elements


def test_years_are_exact_in_the_column_that_says_so():
    assert [score("chartqa", name, "2011", "2010") for name in ("ours", "ours_years_exact")] == [1.0, 0.0]
    assert [score("chartqa", name, "2010.0", "2010") for name in ("ours", "ours_years_exact")] == [1.0, 1.0]
    assert score("chartqa", "ours_years_exact", "[2011, 2013]", "[2010, 2012]") == 0.0
    assert score("chartqa", "ours_years_exact", "2,011", "2,010") == 1.0, "written with a comma it is a quantity"
    assert score("chartqa", "ours_years_exact", "1020", "1000") == 1.0, "no year of a chart"
