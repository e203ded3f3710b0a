"""The samples of a report: each once, with what came of it in every run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.records import Prediction
from eval.report.run import Outcome, Run


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureName:
    """What tells one picture of a report from another."""

    task: str
    variant: str
    """AI2D's pictures exist in three variants; "" elsewhere."""
    id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedSample:
    """One question, and what came of it in each run."""

    record: Prediction
    """Of the first run that has it; of a record, only what says what was asked."""
    outcomes: Sequence[Outcome | None]
    """One a run, None where that run does not have the sample."""

    @property
    def cluster(self) -> str:
        return self.record.cluster

    @property
    def pictures(self) -> list[PictureName]:
        variant = str(self.record.fields.get("variant") or "")
        return [PictureName(task=self.record.task, variant=variant, id=name) for name in self.record.images]


def side_by_side(runs: Sequence[Run]) -> list[ComparedSample]:
    """Return the samples of all runs, task by task, in the order in which they were first answered.

    Samples that share an id and ask something else (two variants of the data, say) are two samples.
    """
    found: dict[tuple, list[Outcome | None]] = {}
    for place, run in enumerate(runs):
        for outcome in run.outcomes:
            found.setdefault(_identity(outcome.record), [None] * len(runs))[place] = outcome
    samples = [
        ComparedSample(record=next(filter(None, outcomes)).record, outcomes=outcomes) for outcomes in found.values()
    ]
    tasks = sorted({sample.record.task for sample in samples})
    return sorted(samples, key=lambda sample: tasks.index(sample.record.task))


def _identity(record: Prediction) -> tuple:
    asked = (record.question, tuple(record.target), tuple(record.options), tuple(record.images))
    return record.task, record.id, str(record.fields.get("variant")), *asked


def by_task(samples: Sequence[ComparedSample]) -> Mapping[str, list[ComparedSample]]:
    """Return the samples of each task."""
    tasks: dict[str, list[ComparedSample]] = {}
    for sample in samples:
        tasks.setdefault(sample.record.task, []).append(sample)
    return tasks
