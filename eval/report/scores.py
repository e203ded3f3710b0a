"""What is counted over the samples of a task: scores with their errors, groups, scorers that disagree, calibration."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.report.facets import in_order
from eval.report.samples import ComparedSample
from eval.scorers import UNPARSED, Verdict
from eval.statistics import Summary, mean, summarise

NUM_BINS = 10
_STDERRS = 1.959964
"""Half the width of a 95 % interval of a normal distribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What one scorer says of one run."""

    run: int
    """Which of the report's runs."""
    scorer: str
    summary: Summary
    reasons: Counter
    """Why answers got no point without being compared."""
    num_errors: int
    """Samples without an answer."""

    @property
    def stderr(self) -> float | None:
        """Clustered by picture where there are several, else of independent samples; None of a single one."""
        for stderr in (self.summary.clustered_stderr, self.summary.stderr):
            if math.isfinite(stderr):
                return stderr
        return None

    @property
    def interval(self) -> tuple[float, float]:
        return interval_of(self.summary)

    @property
    def num_unparsed(self) -> int:
        return self.reasons[UNPARSED]

    @property
    def num_failed(self) -> int:
        """Answers on which the harness that is reproduced raises."""
        return self.reasons.total() - self.num_unparsed

    @property
    def failures(self) -> str:
        """What the harness raises, and how often."""
        return ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items() if reason != UNPARSED)

    @property
    def mean_errors_wrong(self) -> float:
        return self.summary.mean * self.summary.n / (self.summary.n + self.num_errors)


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """How often the scorers of a task judge the same answers of a run differently."""

    run: int
    alike: list[list[str]]
    """The scorers, those together that judge every answer of the run alike."""
    counts: list[list[int]]
    """Answers on which those of row and column differ."""
    num_any: int
    """Answers on which any two differ."""

    def heat(self, count: int) -> int:
        """Return from 0 to 4 how large a count is among the counts."""
        largest = max(map(max, self.counts), default=0)
        return math.ceil(4 * count / largest) if largest else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupScore:
    """The headline score of the samples of one run that share a value."""

    run: int
    n: int
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """The headline scores of a task by the values of one facet."""

    name: str
    rows: list[tuple[str, list[GroupScore | None]]]
    """Value, and one score a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Answers that were given with about the same confidence."""

    n: int
    confidence: float
    """The mean of theirs."""
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How confidence goes with being right, in one run."""

    run: int
    bins: list[Bin]
    n: int
    error: float
    """Expected calibration error: the distance of score and confidence, averaged over the answers."""


def scorers_of(samples: Sequence[ComparedSample]) -> list[str]:
    """Return the scorers that apply to any of the samples, the headline first."""
    judged = [outcome.verdicts for sample in samples for outcome in sample.outcomes if outcome is not None]
    names = dict.fromkeys(name for verdicts in judged for name in verdicts)
    return [name for name in names if any(verdicts.get(name) is not None for verdicts in judged)]


def scores(samples: Sequence[ComparedSample], num_runs: int) -> dict[str, list[Score]]:
    """Return for every scorer its scores of the runs, the headline first."""
    found: dict[str, list[Score]] = {}
    for scorer in scorers_of(samples):
        for run in range(num_runs):
            judged = list(_judged(samples, run, scorer))
            if not judged:
                continue
            summary = summarise([verdict.value for _, verdict in judged], [sample.cluster for sample, _ in judged])
            reasons = Counter(verdict.reason for _, verdict in judged if verdict.reason is not None)
            errors = sum(1 for sample in samples if (outcome := sample.outcomes[run]) and not outcome.is_answer)
            score = Score(run=run, scorer=scorer, summary=summary, reasons=reasons, num_errors=errors)
            found.setdefault(scorer, []).append(score)
    return found


def _judged(samples: Sequence[ComparedSample], run: int, scorer: str) -> Iterator[tuple[ComparedSample, Verdict]]:
    for sample in samples:
        outcome = sample.outcomes[run]
        verdict = None if outcome is None else outcome.verdicts.get(scorer)
        if verdict is not None:
            yield sample, verdict


def disagreement(samples: Sequence[ComparedSample], run: int) -> Disagreement:
    """Return how often each two scorers differ on a run."""
    answers = [outcome for sample in samples if (outcome := sample.outcomes[run]) and outcome.is_answer]
    alike: dict[tuple[float | None, ...], list[str]] = {}
    for name in scorers_of(samples):
        said = [outcome.verdicts.get(name) for outcome in answers]
        alike.setdefault(tuple(None if verdict is None else verdict.value for verdict in said), []).append(name)
    return Disagreement(
        run=run,
        alike=list(alike.values()),
        counts=[[_num_different(first, second) for second in alike] for first in alike],
        num_any=sum(len({*values} - {None}) > 1 for values in zip(*alike, strict=True)),
    )


def _num_different(first: Sequence[float | None], second: Sequence[float | None]) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True) if a is not None and b is not None)


def groups(
    samples: Sequence[ComparedSample], name: str, values: Sequence[str | None], scorer: str, num_runs: int
) -> Groups:
    """Return the scores by a facet, `values` being that of each sample."""
    rows = []
    for value in in_order(values):
        members = [sample for sample, own in zip(samples, values, strict=True) if own == value]
        rows.append((value, [_group_score(members, run, scorer) for run in range(num_runs)]))
    return Groups(name=name, rows=rows)


def _group_score(samples: Sequence[ComparedSample], run: int, scorer: str) -> GroupScore | None:
    judged = list(_judged(samples, run, scorer))
    if not judged:
        return None
    summary = summarise([verdict.value for _, verdict in judged], [sample.cluster for sample, _ in judged])
    return GroupScore(run=run, n=summary.n, mean=summary.mean, interval=interval_of(summary))


def calibration(samples: Sequence[ComparedSample], run: int, scorer: str) -> Calibration | None:
    """Return how well the confidence of a run's answers tells their scores; None where it is not known."""
    members: dict[int, list[tuple[float, float, str]]] = {}
    for sample, verdict in _judged(samples, run, scorer):
        confidence = sample.outcomes[run].record.confidence
        if confidence is not None and 0 <= confidence <= 1:
            place = min(int(confidence * NUM_BINS), NUM_BINS - 1)
            members.setdefault(place, []).append((confidence, verdict.value, sample.cluster))
    if not members:
        return None
    bins = [_bin(each) for _, each in sorted(members.items())]
    n = sum(each.n for each in bins)
    error = math.fsum(each.n * abs(each.mean - each.confidence) for each in bins) / n
    return Calibration(run=run, bins=bins, n=n, error=error)


def _bin(members: Sequence[tuple[float, float, str]]) -> Bin:
    confidences, values, clusters = zip(*members, strict=True)
    summary = summarise(values, clusters)
    return Bin(n=summary.n, confidence=mean(confidences), mean=summary.mean, interval=interval_of(summary))


def interval_of(summary: Summary) -> tuple[float, float]:
    """Return the 95 % interval: Wilson's, or by the standard error where answers earn parts of a point."""
    if summary.wilson is not None:
        return tuple(summary.wilson)
    stderr = summary.clustered_stderr if math.isfinite(summary.clustered_stderr) else summary.stderr
    if not math.isfinite(stderr):
        return 0.0, 1.0
    return max(0.0, summary.mean - _STDERRS * stderr), min(1.0, summary.mean + _STDERRS * stderr)
