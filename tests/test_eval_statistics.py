"""Errors of means, intervals and paired comparisons, beside slow twins and values worked out by hand."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import (
    STYLES,
    Interval,
    clustered_stderr,
    effective_num,
    mcnemar,
    mean,
    minimum_detectable_difference,
    naive_stderr,
    paired_bootstrap,
    summarise,
    wilson_interval,
)
from vlm import VLMError

SCORED = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 6)), min_size=2, max_size=40)


def miller(values, clusters):
    """Equation 4 of Miller's paper, written out over all pairs of values of a cluster."""
    n, centre = len(values), sum(values) / len(values)
    naive = sum((value - centre) ** 2 for value in values) / (n - 1) / n
    pairs = sum(
        (values[i] - centre) * (values[j] - centre)
        for i, j in itertools.permutations(range(n), 2)
        if clusters[i] == clusters[j]
    )
    return math.sqrt(max(0.0, naive + pairs / n**2))


def corrected(values, clusters):
    """The cluster-robust error of a mean with its correction, from the definition."""
    n, centre, names = len(values), sum(values) / len(values), set(clusters)
    if len(names) == 1:
        return 0.0
    sums = [sum(v - centre for v, c in zip(values, clusters, strict=True) if c == name) for name in names]
    return math.sqrt(len(names) / (len(names) - 1) * sum(total**2 for total in sums)) / n


@settings(max_examples=80, deadline=None)
@given(SCORED)
def test_clustered_errors_are_those_of_their_definitions(scored):
    values, clusters = zip(*scored, strict=True)
    assert clustered_stderr(values, clusters, style="lmms_eval") == pytest.approx(miller(values, clusters), abs=1e-9)
    assert clustered_stderr(values, clusters, style="inspect_ai") == pytest.approx(corrected(values, clusters))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=30))
def test_of_values_each_alone_every_error_is_the_naive_one(values):
    alone = range(len(values))
    assert [clustered_stderr(values, alone, style=style) for style in STYLES] == pytest.approx(
        [naive_stderr(values)] * 2
    )


def test_errors_worked_out_by_hand():
    # Mean 1/2, six deviations of 1/2: variance 6/4/5 = 0.3.
    assert naive_stderr([1, 0, 1, 0, 1, 0]) == pytest.approx(math.sqrt(0.3 / 6))
    # Three pairs that agree: cluster sums 1, -1, 1 after taking 2/3 from each: 2/3, -4/3, 2/3.
    pairs = [1, 1, 0, 0, 1, 1], "aabbcc"
    assert clustered_stderr(*pairs) == pytest.approx(math.sqrt(3 / 2 * (24 / 9)) / 6)
    # The naive variance is 12/9/5/6, the products within pairs are 24/9 - 12/9.
    assert clustered_stderr(*pairs, style="lmms_eval") == pytest.approx(math.sqrt(12 / 9 / 30 + 12 / 9 / 36))


def test_what_no_error_can_be_had_of():
    assert math.isnan(mean([]))
    assert math.isnan(naive_stderr([1.0]))
    assert math.isnan(clustered_stderr([1.0], ["a"], style="lmms_eval"))
    assert clustered_stderr([1.0, 0.0], ["a", "a"], style="inspect_ai") == 0.0


@pytest.mark.parametrize(
    ("values", "clusters", "style", "message"),
    [
        ([1.0], ["a"], "bootstrap", "style is 'bootstrap'; expected one of inspect_ai, lmms_eval"),
        ([1.0, 0.0], ["a"], "inspect_ai", "2 values have 1 clusters; give one cluster a value"),
        ([1.0, 0.0], ["a", None], "inspect_ai", "a cluster is missing; give each value the name of its cluster"),
        ([1.0, 0.0], ["a", math.nan], "lmms_eval", "a cluster is missing; give each value the name of its cluster"),
    ],
)
def test_a_misuse_is_refused(values, clusters, style, message):
    with pytest.raises(VLMError) as caught:
        clustered_stderr(values, clusters, style=style)
    assert (caught.value.code, caught.value.message) == ("invalid_request", message)


def test_the_summary_of_a_run():
    summary = summarise([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "c"])
    assert (summary.n, summary.mean, summary.num_clusters) == (4, 0.5, 3)
    assert summary.stderr == naive_stderr([1, 1, 0, 0])
    assert summary.clustered_stderr == clustered_stderr([1, 1, 0, 0], "aabc")
    effective = 4 * (summary.stderr / summary.clustered_stderr) ** 2
    assert summary.wilson == wilson_interval([1, 1, 0, 0], effective)
    one_picture = summarise([1.0, 0.5], ["a", "a"])
    assert math.isnan(one_picture.clustered_stderr)
    assert one_picture.wilson is None


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 40), st.integers(1, 40))
def test_wilsons_interval_is_where_the_normal_test_of_the_share_turns(right, wrong):
    n, share, z = right + wrong, right / (right + wrong), 1.959963984540054
    low, high = wilson_interval([1.0] * right + [0.0] * wrong)
    assert low <= share <= high
    for bound in (low, high):
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "clusters", "effective"),
    [
        # Three pairs that agree: 12/9/5/6 over 3/2 * 24/9 / 36, which is 2/5.
        ([1, 1, 0, 0, 1, 1], "aabbcc", 6 * 2 / 5),
        ([1, 0, 1, 0], "abcd", 4),
        # Pairs that always disagree are no reason to trust more answers than there are.
        ([1, 0, 1, 0, 0, 1], "aabbcc", 6),
        # What does not vary says nothing of how it clusters.
        ([1, 1, 1, 1], "aabb", 2),
        ([1, 0, 1, 0], "aaaa", 1),
        ([1], "a", 1),
    ],
)
def test_so_many_independent_answers_are_clustered_ones_worth(values, clusters, effective):
    summary = summarise(values, clusters)
    found = effective_num(len(values), summary.num_clusters, summary.stderr, summary.clustered_stderr)
    assert found == pytest.approx(effective)
    assert summary.wilson == pytest.approx(wilson_interval(values, effective))


def test_the_interval_of_clustered_answers_holds_the_truth_as_often_as_it_says():
    draw, truth, held, held_as_if_independent = random.Random(0), 0.7, 0, 0
    for _ in range(400):
        # Forty pictures of five questions, right or wrong together in three of four pictures.
        values = []
        for _ in range(40):
            picture, is_together = draw.random() < truth, draw.random() < 0.75
            values += [float(picture if is_together else draw.random() < truth) for _ in range(5)]
        low, high = summarise(values, [place // 5 for place in range(200)]).wilson
        held += low <= truth <= high
        low, high = wilson_interval(values)
        held_as_if_independent += low <= truth <= high
    assert held / 400 == pytest.approx(0.95, abs=0.025)
    assert held_as_if_independent / 400 < 0.8


def test_an_interval_of_nothing_or_of_parts_of_points_is_none():
    assert wilson_interval([]) is None
    assert wilson_interval([0.5, 1.0]) is None


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=30))
def test_mcnemars_test_is_a_fair_coin_on_the_samples_that_changed(pairs):
    first, second = zip(*pairs, strict=True)
    found = mcnemar(first, second)
    only_first, only_second = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    changed, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(changed, k) for k in range(fewer + 1)) / 2**changed
    assert found[:2] == (only_first, only_second)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(second, first).p_value == found.p_value


def test_mcnemars_test_does_not_apply_to_parts_of_points():
    assert mcnemar([0.5, 1.0], [1.0, 1.0]) is None


def run_pair(seed: int, size: int = 300, better: float = 0.2) -> tuple[list[float], list[float], list[int]]:
    """Two runs on pictures of three questions each, which are mostly right or wrong together."""
    draw = random.Random(seed)
    first, second, clusters = [], [], []
    for picture in range(size // 3):
        hard, helped = draw.random() < 0.5, draw.random() < better
        for _ in range(3):
            first.append(float(not hard))
            second.append(float(not hard or helped))
            clusters.append(picture)
    return first, second, clusters


def test_the_bootstrap_resamples_pictures_whole():
    first, second, clusters = run_pair(0, size=3000)
    found = paired_bootstrap(first, second, clusters)
    error = clustered_stderr([b - a for a, b in zip(first, second, strict=True)], clusters)
    half = (found.interval.high - found.interval.low) / 2
    assert found.difference == pytest.approx(mean(second) - mean(first))
    # A percentile interval of a mean is near 1.96 of its error; of single questions it would be near 1.13 of it.
    assert half / error == pytest.approx(1.96, rel=0.05)
    assert found.interval.low < found.difference < found.interval.high


def test_the_bootstrap_gives_the_same_interval_again_and_its_mirror_the_other_way():
    first, second, clusters = run_pair(1)
    found, back = paired_bootstrap(first, second, clusters), paired_bootstrap(second, first, clusters)
    assert found == paired_bootstrap(first, second, clusters)
    assert back.interval == pytest.approx(Interval(-found.interval.high, -found.interval.low), abs=0.005)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=20))
def test_a_run_does_not_differ_from_itself(values):
    found = paired_bootstrap(values, values, range(len(values)), resamples=100)
    assert found == (0.0, Interval(0.0, 0.0))


def test_unequal_clusters_weigh_by_their_questions():
    first, second = [0.0] * 4, [1.0, 1.0, 1.0, 0.0]
    found = paired_bootstrap(first, second, ["a", "a", "a", "b"], resamples=2000)
    assert found.difference == 0.75
    # Resampled pictures are aa, ab (twice) and bb: differences 1, 3/4 and 0.
    assert found.interval == (0.0, 1.0)


def test_one_picture_gives_no_interval():
    found = paired_bootstrap([0.0, 1.0], [1.0, 1.0], ["a", "a"])
    assert found.difference == 0.5
    assert all(map(math.isnan, found.interval))
    assert math.isnan(minimum_detectable_difference([0.0, 1.0], [1.0, 1.0], ["a", "a"]))


def test_pictures_that_all_differ_by_the_same_give_no_interval():
    first, second = [0.0] * 4, [1.0] * 4
    for run in (second, [0.3] * 4):
        assert all(map(math.isnan, paired_bootstrap(first, run, "aabc").interval))


def test_a_difference_that_would_have_been_seen_four_times_in_five():
    first, second, clusters = run_pair(2)
    error = clustered_stderr([b - a for a, b in zip(first, second, strict=True)], clusters)
    found = minimum_detectable_difference(first, second, clusters)
    assert found == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    assert minimum_detectable_difference(first, second, clusters, power=0.5) == pytest.approx(
        1.959964 * error, rel=1e-5
    )
    assert math.isnan(minimum_detectable_difference(first, first, clusters))


@pytest.mark.parametrize("compare", [mcnemar, lambda a, b: paired_bootstrap(a, b, "ab")])
def test_runs_on_different_samples_cannot_be_compared(compare):
    with pytest.raises(VLMError, match="the runs have 2 and 1 values; give both on the same samples"):
        compare([1.0, 0.0], [1.0])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("given", [np.array, tuple, iter], ids=["array", "tuple", "iterator"])
def test_values_come_in_any_row(given, style):
    values, clusters = [1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "c"]
    expected = clustered_stderr(values, clusters, style=style)
    assert clustered_stderr(given(values), given(clusters), style=style) == pytest.approx(expected)
