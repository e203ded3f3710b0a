"""What all scorers have in common: they are named, they never raise, they never guess, and outsiders can add theirs."""

import math
import random
import re
import subprocess
import sys
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval as harness
from eval import scorers
from eval.scorers import FAMILIES, SCORERS, Case, Scorer, Verdict, judge, score

TEXT = st.text(max_size=60)
SCRAPS = [
    *("FINAL ANSWER: ", "Answer:", "answer is ", "the ", "and ", "not ", "option ", "#### ", "\\boxed{", "}"),
    *("12", "1,200", "45%", "−5", "½", "٣", "1e400", "nan", "inf", "$", "ß", "İ", "\ud800", "\x00"),
    *("B", "b. ", "C) ", "(", ")", "[", "]", "'", '"', ",", ".", ":", " ", "\n", "<think>", "</think>"),
]
PROSE = st.lists(st.sampled_from(SCRAPS), max_size=12).map("".join)
REPLIES = st.one_of(TEXT, PROSE)
QUESTIONS = st.fixed_dictionaries(
    {},
    optional={
        "options": st.lists(TEXT, max_size=6),
        "numbered": st.booleans(),
        "option_scores": st.lists(st.tuples(st.floats(-50, 0), st.integers(1, 9)), max_size=6),
        "category": TEXT,
        "question_type": st.sampled_from(["Conversational", "Multi Choice", "open"]),
        "answer_type": st.sampled_from(["integer", "float", "list", "text"]),
        "precision": st.sampled_from([None, 1, 2.0, "1.0", "x", -1, math.inf, 10**400]),
        "year_flags": st.lists(st.sampled_from(["YES", "NO"]), max_size=3),
        "language": st.sampled_from(["en", "de", "english"]),
        "subject": TEXT,
    },
)
EVERY_SCORER = list(SCORERS.values())


@settings(max_examples=100, deadline=None)
@given(REPLIES, st.one_of(REPLIES, st.lists(REPLIES, min_size=1, max_size=10)), QUESTIONS)
def test_no_scorer_raises_or_leaves_the_range_or_guesses(reply, targets, case):
    state = random.getstate()
    for scorer in EVERY_SCORER:
        verdict = scorer.judge(reply, targets, **case)
        assert verdict is None or isinstance(verdict, Verdict)
        assert verdict == scorer.judge(reply, targets, **case), scorer.name
        if verdict is not None:
            assert 0 <= verdict.value <= 1, scorer.name
            assert isinstance(verdict.extracted, str | None)
            assert verdict.reason in (None, "unparsed") or verdict.reason.startswith("raises ")
            assert verdict.reason is None or verdict.value == 0
    assert random.getstate() == state, "a scorer drew lots"


@pytest.mark.parametrize("scorer", EVERY_SCORER, ids=lambda scorer: f"{scorer.family}-{scorer.name}")
def test_every_scorer_can_give_a_point_and_withhold_it(scorer):
    """On replies that say what any harness could want to hear, so that no rule is dead."""
    likely = {"option_scores": ((-1.0, 1), (-2.0, 1))}, {"option_scores": ((-2.0, 1), (-1.0, 1))}
    if scorer.family == "multiple_choice" or scorer.name == "lmms_eval_pipeline":
        # That pipeline never gives a point for an open answer, which was its fault.
        good, bad, target, case = ("A", "Answer: A"), "B", "A", {"options": ("x", "y")}
    else:
        good = ("7", "Answer: 7", "Final Answer: 7", "ANSWER: 7", "The final answer is 7", "The answer is 7.")
        bad, target, case = "8", "7", {"answer_type": "integer"}
    targets = [target] * 10 if scorer.family == "vqa_accuracy" else target
    assert max(scorer.judge(reply, targets, **case, **likely[0]).value for reply in good) == 1.0
    assert scorer.judge(bad, targets, **case, **likely[1]).value == 0.0


@pytest.mark.parametrize("scorer", EVERY_SCORER, ids=lambda scorer: f"{scorer.family}-{scorer.name}")
def test_where_no_answer_is_known_no_scorer_applies(scorer):
    assert scorer.judge("7", ()) is None


def test_scorers_are_found_by_family_and_by_task():
    for task, family in FAMILIES.items():
        assert scorers.for_task(task) == scorers.for_task(family)
    for family, name in SCORERS:
        assert scorers.find(family, name) is SCORERS[family, name]
        assert SCORERS[family, name].source
        assert SCORERS[family, name].version >= 1
    # What a task reports first unless it says otherwise.
    for family in ("chartqa", "multiple_choice", "anls", "vqa_accuracy", "mmmu", "mathvista"):
        assert scorers.for_task(family)[0].name == "ours"


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("chartqa", "oracle", "no scorer 'oracle' for 'chartqa'; expected one of ours, ours_years_exact, pix2struct"),
        ("docvqa", "pix2structs", "no scorer 'pix2structs' for 'docvqa'; expected one of ours"),
        ("poetry", "ours", "no scorers for 'poetry'; expected one of ai2d, anls, chartqa"),
        ("standard_error", "jackknife", "jackknife"),
    ],
)
def test_a_scorer_that_is_not_offered_is_a_key_error(task, name, message):
    with pytest.raises(KeyError) as caught:
        score(task, name, [0.0], ["a"]) if task == "standard_error" else score(task, name, "reply", "answer")
    assert message in str(caught.value)


def test_the_library_gives_points_and_errors_by_the_names_of_the_harnesses():
    assert harness.score("chartqa", "pix2struct", "7", "7") == 1.0
    assert harness.score("chartqa", "cambrian", "7", ["7", "8"]) is None
    values, clusters = [1, 1, 0, 0, 1, 0], "aabbcc"
    given_errors = {
        name: harness.score("standard_error", name, values, list(clusters)) for name in scorers.STANDARD_ERRORS
    }
    assert given_errors["lmms_eval_clustered_stderr"] == harness.clustered_stderr(values, clusters, style="lmms_eval")
    assert given_errors["inspect_ai_clustered_stderr"] == harness.clustered_stderr(values, clusters, style="inspect_ai")
    assert given_errors["lm_eval_and_lmms_eval_mean_stderr"] == pytest.approx((0.3 / 6) ** 0.5)


def test_fields_that_no_rule_knows_are_ignored():
    assert judge("chartqa", "ours", "7", "7", split="human", page=None, prompt="?") == (1.0, "7", None)


PAGE = Path(__file__).parent.parent / "docs" / "adding_a_scorer.md"


def test_the_scorer_of_the_page_about_adding_one_judges():
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1), names)
    (scorer,) = names["SCORERS"]
    assert scorer.judge("12 of them", "12") == (1.0, "12", None)
    assert scorer.judge("about 12", "12") == (0.0, "about", None)
    assert scorer.judge(" ", "12") == (0.0, None, "unparsed")
    assert scorer.judge("A", "A", options=("x", "y")) is None


def test_the_page_about_adding_a_scorer_names_every_family_and_field():
    page = PAGE.read_text(encoding="utf-8")
    names = {family for family, _ in SCORERS} | {field.name for field in fields(Case)}
    assert {name for name in names if f"`{name}`" not in page} == set()


class _EntryPoint:
    def __init__(self, *brought: Scorer):
        self.brought = brought

    def load(self):
        return self.brought


def test_another_package_brings_scorers_but_replaces_none(monkeypatch):
    loud = Scorer(
        family="poetry", name="loud", source="a test", rule=lambda case: Verdict(float(case.prediction.isupper()), None)
    )
    false = Scorer(family="chartqa", name="ours", source="a test", rule=lambda case: Verdict(1.0, None))
    more = Scorer(family="chartqa", name="more", source="a test", rule=lambda case: None)
    points = {scorers.ENTRY_POINT_GROUP: [_EntryPoint(loud, false), _EntryPoint(more)]}
    monkeypatch.setattr(metadata, "entry_points", lambda group: points[group])
    scorers._every_scorer.cache_clear()
    try:
        assert score("poetry", "loud", "ODE", "any") == 1.0
        assert score("chartqa", "more", "7", "7") is None
        assert score("chartqa", "ours", "7", "8") == 0.0
        assert [scorer.name for scorer in scorers.for_task("chartqa")][-1] == "more"
    finally:
        scorers._every_scorer.cache_clear()


def test_scoring_imports_nothing_heavy():
    program = """
import sys
from eval import score, clustered_stderr
score("docvqa", "ours", "word", "word"), clustered_stderr([0, 1], "ab")
print([name for name in ("torch", "numpy", "scipy", "pyarrow", "pandas", "httpx", "ray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
