"""The tables and plots of one task, as the page's template takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from eval import scorers as rules
from eval import tasks
from eval.comparison import compare
from eval.report.facets import ANSWER_KIND, NUM_TILES, PICTURE_SIZE, QUESTION_WORD
from eval.report.run import Run
from eval.report.samples import ComparedSample
from eval.report.scores import (
    Calibration,
    Disagreement,
    Groups,
    Score,
    calibration,
    disagreement,
    groups,
    scorers_of,
    scores,
)
from eval.scoring import variant_of
from vlm.errors import VLMError

_FIRST_PLOTS = ("split", "variant", "question_type", "category", ANSWER_KIND, NUM_TILES, PICTURE_SIZE, QUESTION_WORD)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCounts:
    """How many of a task's samples a run has, and what came of them."""

    run: int
    name: str
    model: str
    prompt: str
    variant: str
    """Of the data, "" for a task that has only one."""
    pictures: str
    """"blank", or "" where they were shown as they are."""
    num_samples: int
    num_errors: int
    num_cut_off: int
    num_missing: int | None
    """Not answered yet; None where the manifest does not say how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A run beside the first one."""

    run: int
    differences: Mapping[str, Mapping[str, object]]
    """By scorer, as `eval.comparison.compare` gives them."""
    num_common: int
    problem: str
    """Why they cannot be compared, or ""."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSection:
    """What the page shows of one task above the samples."""

    name: str
    title: str
    headline: str
    counts: list[RunCounts]
    lacking: list[int]
    """Runs without any sample of the task."""
    scores: Mapping[str, list[Score]]
    """By scorer, the headline first."""
    scorers: Mapping[str, rules.Scorer]
    compared: list[Compared]
    disagreements: list[Disagreement]
    groups: list[Groups]
    calibrations: list[Calibration]
    processor: Mapping[str, object] | None

    def main_score(self, run: int) -> Score | None:
        """Return the score of a run that is reported first."""
        return next((score for score in self.scores.get(self.headline, ()) if score.run == run), None)

    def link(self, **state: object) -> str:
        """Return the address, within the page, of the samples that `state` filters; see filters.js."""
        return "#" + urlencode({"task": self.name, **state}, errors="replace")

    def group_link(self, facet: str, value: str) -> str:
        """Return the address of the samples of one group."""
        return self.link(**{f"by:{facet}": value})


def task_section(
    name: str,
    samples: Sequence[ComparedSample],
    runs: Sequence[Run],
    facets: Mapping[str, Sequence[str | None]],
    processor: Mapping[str, object] | None,
    comparisons: Sequence[dict | str],
) -> TaskSection:
    """Return what the page shows of a task.

    facets: of its samples. processor: whose tiles were counted. comparisons: as `comparisons` returns them.
    """
    names = scorers_of(samples)
    headline = names[0] if names else ""
    having = [run for run in range(len(runs)) if any(sample.outcomes[run] for sample in samples)]
    plotted = sorted(facets, key=lambda facet: _FIRST_PLOTS.index(facet) if facet in _FIRST_PLOTS else 99)
    measured = (calibration(samples, run, headline) for run in having) if names else ()
    return TaskSection(
        name=name,
        title=tasks.find(name).title,
        headline=headline,
        counts=[_counts(name, samples, run, runs[run]) for run in having],
        lacking=[run for run in range(len(runs)) if run not in having],
        scores=scores(samples, len(runs)),
        scorers={scorer: rules.find(tasks.find(name).family, scorer) for scorer in names},
        compared=[_compared(name, comparisons[run], run) for run in having if run > 0 and 0 in having],
        disagreements=[disagreement(samples, run) for run in having],
        groups=[groups(samples, facet, facets[facet], headline, len(runs)) for facet in plotted] if names else [],
        calibrations=[each for each in measured if each is not None],
        processor=processor,
    )


def _counts(name: str, samples: Sequence[ComparedSample], place: int, run: Run) -> RunCounts:
    records = [outcome.record for sample in samples if (outcome := sample.outcomes[place])]
    described = run.manifest.get("tasks")
    described = described.get(name) if isinstance(described, dict) else None
    described = described if isinstance(described, dict) else {}
    expected, prompt = described.get("num_samples"), described.get("prompt")
    return RunCounts(
        run=place,
        name=run.name,
        model=str(run.model.get("name", "?")),
        prompt=", ".join(map(str, prompt)) if isinstance(prompt, list) else "?",
        variant=variant_of(record.fields for record in records if record.error is None),
        pictures="blank" if run.shows_blank_pictures else "",
        num_samples=len(records),
        num_errors=sum(record.error is not None for record in records),
        num_cut_off=sum(record.error is None and record.finish_reason == "length" for record in records),
        num_missing=max(0, expected - len(records)) if isinstance(expected, int) else None,
    )


def comparisons(runs: Sequence[Run]) -> list[dict | str]:
    """Return, for each run, how it compares with the first by task, or why it cannot be compared."""
    return ["it is the first", *(_comparison(runs[0], run) for run in runs[1:])]


def _comparison(first: Run, second: Run) -> dict | str:
    try:
        return compare(first.path, second.path)["tasks"]
    except VLMError as error:
        return error.message


def _compared(name: str, found: dict | str, place: int) -> Compared:
    if isinstance(found, str) or name not in found:
        problem = found if isinstance(found, str) else "no sample was answered by both"
        return Compared(run=place, differences={}, num_common=0, problem=problem)
    return Compared(run=place, differences=found[name]["scores"], num_common=found[name]["n"], problem="")
