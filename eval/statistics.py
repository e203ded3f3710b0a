"""How sure a score is, and whether two runs differ.

Several questions often share one picture, and whoever misreads the picture misses them all; the clusters here are the
pictures. What scipy has is taken from it, and only then imported.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 10_000

STYLES = ("inspect_ai", "lmms_eval")


class Interval(NamedTuple):
    """Bounds between which a quantity lies with a stated confidence."""

    low: float
    high: float


class Summary(NamedTuple):
    """The score of a run."""

    n: int
    mean: float
    stderr: float
    """Of independent samples; NaN for fewer than two."""
    clustered_stderr: float
    """Of samples clustered by picture, with the correction for few clusters; NaN for fewer than two clusters."""
    num_clusters: int
    wilson: Interval | None
    """Of right and wrong answers, by their effective number; None where answers earn parts of a point."""


class McNemar(NamedTuple):
    """The exact test of whether two runs are right on equally many samples; it takes these for independent."""

    only_first: int
    """Samples that the first run alone has right."""
    only_second: int
    p_value: float


class PairedBootstrap(NamedTuple):
    """How much higher the second run scores on the same samples."""

    difference: float
    interval: Interval
    """Percentile interval over resampled clusters."""


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def naive_stderr(values: Sequence[float]) -> float:
    """Return the standard error of the mean of independent values; NaN for fewer than two.

    Source: EleutherAI/lm-evaluation-harness, lm_eval/api/metrics.py, mean_stderr.
    """
    if len(values) < 2:
        return math.nan
    return math.sqrt(_sum_of_squares(values) / (len(values) - 1) / len(values))


def clustered_stderr(values: Iterable[float], clusters: Iterable[Hashable], *, style: str = "inspect_ai") -> float:
    """Return the standard error of the mean of values that depend on each other within a cluster.

    style: "inspect_ai" sums squared deviations of clusters and corrects for few of them by C / (C - 1); one cluster
        gives 0. "lmms_eval" adds the products within clusters to the naive variance (Miller, "Adding error bars to
        evals", 2024, equation 4); fewer than two values give NaN.
    Raises: VLMError (invalid_request) for an unknown style, missing clusters, and lists of unequal length.
    """
    values, clusters = list(values), list(clusters)
    sums = _cluster_sums(values, clusters)
    if style not in STYLES:
        raise _invalid(f"style is {style!r:.40}; expected one of {', '.join(STYLES)}")
    n, num_clusters, between = len(values), len(sums), math.fsum(total * total for total, _ in sums)
    if style == "inspect_ai":
        return 0.0 if num_clusters < 2 else math.sqrt(between * num_clusters / (num_clusters - 1)) / n
    if n < 2:
        return math.nan
    within = _sum_of_squares(values)
    return math.sqrt(max(0.0, within / (n - 1) / n + (between - within) / n**2))


def summarise(values: Sequence[float], clusters: Sequence[Hashable]) -> Summary:
    """Return the score of a run with its errors."""
    num_clusters, stderr = len(set(clusters)), naive_stderr(values)
    clustered = clustered_stderr(values, clusters) if num_clusters > 1 else math.nan
    return Summary(
        n=len(values),
        mean=mean(values),
        stderr=stderr,
        clustered_stderr=clustered,
        num_clusters=num_clusters,
        wilson=wilson_interval(values, effective_num(len(values), num_clusters, stderr, clustered)),
    )


def effective_num(num: int, num_clusters: int, stderr: float, clustered: float) -> float:
    """Return how many independent values would tell the mean as surely as `num` in clusters do: from 1 to `num`.

    It is `num` over the design effect, by which the clusters multiply the variance of the mean. The number of clusters
    where values do not vary, or lie in one cluster: nothing tells then how alike those of a cluster are.

    stderr, clustered: the standard errors of the mean without and with the clusters.

    Source: Kish, "Survey Sampling", 1965, section 8.2 (deff).
    """
    if num_clusters < 2 or not stderr:
        return num_clusters
    return num if clustered <= stderr else max(1.0, num * (stderr / clustered) ** 2)


def wilson_interval(
    values: Sequence[float], num: float | None = None, *, confidence: float = CONFIDENCE
) -> Interval | None:
    """Return Wilson's interval of a share of right answers; None when there are none or some earn parts of a point.

    num: how many independent answers they are worth; None takes all for independent.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    from scipy.stats import norm

    if not values or not _are_binary(values):
        return None
    share, num, z = mean(values), num or len(values), float(norm.ppf((1 + confidence) / 2))
    centre, scale = share + z**2 / (2 * num), 1 + z**2 / num
    half = z * math.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    # Rounding must not put the share itself outside.
    return Interval(min(share, max(0.0, (centre - half) / scale)), max(share, min(1.0, (centre + half) / scale)))


def mcnemar(first: Sequence[float], second: Sequence[float]) -> McNemar | None:
    """Return McNemar's exact test on the same samples in the same order; None where answers earn parts of a point."""
    from scipy.stats import binomtest

    _check_pairs(first, second)
    if not _are_binary(first) or not _are_binary(second):
        return None
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(a < b for a, b in zip(first, second, strict=True))
    changed = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, changed).pvalue) if changed else 1.0)


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedBootstrap:
    """Return how much higher `second` is in the mean, with an interval from resampling whole clusters.

    The same samples in the same order are expected. Fewer than two clusters give an interval of NaN, and so do clusters
    that all differ by the same, other than 0: resampled, they say nothing of how others would differ.
    """
    import numpy as np
    from scipy.stats import bootstrap

    _check_pairs(first, second)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    sums = _cluster_sums(differences, clusters, centre=0.0)
    difference = mean(differences)
    if len(sums) < 2:
        return PairedBootstrap(difference, Interval(math.nan, math.nan))
    totals, sizes = np.array(sums).T
    if difference and np.allclose(totals / sizes, difference, rtol=0, atol=1e-12):
        return PairedBootstrap(difference, Interval(math.nan, math.nan))
    result = bootstrap(
        (totals, sizes),
        lambda totals, sizes, axis: totals.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=resamples,
        # Bounds the memory: a batch holds this many resampled copies of the clusters.
        batch=max(1, 1_000_000 // len(sums)),
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return PairedBootstrap(difference, Interval(float(low), float(high)))


def minimum_detectable_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> float:
    """Return the smallest true difference that a comparison of this size would have shown with probability `power`.

    From the clustered error of the differences that were seen; NaN for fewer than two clusters, and where no two
    differences differ, which says nothing of how they would vary.
    """
    from scipy.stats import norm

    _check_pairs(first, second)
    if len(set(clusters)) < 2:
        return math.nan
    error = clustered_stderr([b - a for a, b in zip(first, second, strict=True)], clusters)
    return float(norm.ppf((1 + confidence) / 2) + norm.ppf(power)) * error if error else math.nan


def _sum_of_squares(values: Sequence[float]) -> float:
    """Return the sum of squared deviations from the mean."""
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values)


def _cluster_sums(
    values: Sequence[float], clusters: Sequence[Hashable], *, centre: float | None = None
) -> list[tuple[float, int]]:
    """Return the sum of deviations from `centre` (the mean by default) and the size of each cluster."""
    if len(values) != len(clusters):
        raise _invalid(f"{len(values)} values have {len(clusters)} clusters; give one cluster a value")
    if any(cluster is None or cluster != cluster for cluster in clusters):
        raise _invalid("a cluster is missing; give each value the name of its cluster")
    centre = mean(values) if centre is None else centre
    members: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(value - centre)
    return [(math.fsum(deviations), len(deviations)) for deviations in members.values()]


def _are_binary(values: Sequence[float]) -> bool:
    return all(value in (0, 1) for value in values)


def _check_pairs(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        raise _invalid(f"the runs have {len(first)} and {len(second)} values; give both on the same samples")


def _invalid(message: str) -> Exception:
    from vlm.errors import VLMError

    return VLMError("invalid_request", message)
