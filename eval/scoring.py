"""From the answers in a folder to its scores; no model is needed, and nothing but the log is read."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

from eval import scorers as rules
from eval import tasks
from eval.records import Prediction
from eval.run.folder import SCORES, RunFolder
from eval.run.journal import read_journals
from eval.statistics import summarise
from eval.verdicts import case_of, judges_of
from vlm.errors import UnknownName, VLMError

MAX_GROUPS = 30
"""A field with more values than these names samples, not groups of them."""


def score_folder(path: str | os.PathLike, scorers: Sequence[str] | None = None, *, keep: bool = True) -> dict:
    """Score the answers of all shards in a run's folder, write scores.json and return what it holds.

    scorers: names; None takes those of each task. keep: without, nothing is written.

    Raises: VLMError for a scorer that no task has, and for a folder without answers.
    """
    folder = RunFolder(path)
    if not folder.journals():
        raise VLMError(
            "invalid_request", f"{folder.path.name!r:.80} holds no answers; expected a run's folder; run it first"
        )
    with folder.settling() if keep else nullcontext():
        manifest = folder.manifest() or {}
        found: dict[str, _TaskScores] = {}
        for record in read_journals(folder.journals()):
            if record.task not in found:
                found[record.task] = _TaskScores(record.task, scorers)
            found[record.task].add(record)
        if scorers:
            _check_known(scorers, found)
        scores = {"tasks": {name: found[name].summary(_num_expected(manifest, name)) for name in sorted(found)}}
        if keep:
            folder.write_json(SCORES, scores)
    return scores


class _TaskScores:
    """The verdicts on one task's answers, as they come in."""

    def __init__(self, name: str, wanted: Sequence[str] | None):
        self._judges = judges_of(name)
        if wanted:
            everyone = rules.for_task(tasks.find(name).family)
            self._judges = [judge for judge in everyone if judge.name in wanted]
        self.names = {judge.name for judge in self._judges}
        self._num_errors = self._num_cut_off = 0
        self._clusters: list[str] = []
        self._fields: list[Mapping[str, object]] = []
        self._values: dict[str, list[float | None]] = {judge.name: [] for judge in self._judges}
        self._reasons: dict[str, dict[str, int]] = {judge.name: {} for judge in self._judges}

    def add(self, record: Prediction) -> None:
        if record.error is not None:
            self._num_errors += 1
            return
        self._num_cut_off += record.finish_reason == "length"
        self._clusters.append(record.cluster)
        self._fields.append(record.fields)
        case = case_of(record)
        for judge in self._judges:
            verdict = judge.judge_case(case)
            self._values[judge.name].append(None if verdict is None else verdict.value)
            if verdict is not None and verdict.reason is not None:
                reasons = self._reasons[judge.name]
                reasons[verdict.reason] = reasons.get(verdict.reason, 0) + 1

    def summary(self, num_expected: int | None) -> dict:
        """Return the scores as scores.json holds them."""
        num_records = len(self._clusters) + self._num_errors
        variant = variant_of(self._fields)
        return {
            # Scores of different variants may not be compared, so that each says of which it is.
            **({"variant": variant} if variant else {}),
            "n": num_records,
            "answered": len(self._clusters),
            "errors": self._num_errors,
            "missing": None if num_expected is None else num_expected - num_records,
            "cut_off": self._num_cut_off,
            "scores": {
                judge.name: self._score(judge)
                for judge in self._judges
                if any(value is not None for value in self._values[judge.name])
            },
        }

    def _score(self, judge: rules.Scorer) -> dict:
        places = [place for place, value in enumerate(self._values[judge.name]) if value is not None]
        whole = self._mean(judge, places)
        reasons = self._reasons[judge.name]
        return {
            **whole,
            # Errors are no answers and not in the mean; this is the mean with each of them wrong.
            "mean_errors_wrong": whole["mean"] * len(places) / (len(places) + self._num_errors),
            "unparsed": reasons.get(rules.UNPARSED, 0),
            "reasons": dict(sorted(reasons.items())),
            "version": judge.version,
            "by": {
                name: {value: self._mean(judge, group) for value, group in sorted(groups.items())}
                for name, groups in sorted(self._groups(places).items())
                if 1 < len(groups) <= MAX_GROUPS
            },
        }

    def _mean(self, judge: rules.Scorer, places: Sequence[int]) -> dict:
        summary = summarise(
            [self._values[judge.name][place] for place in places], [self._clusters[place] for place in places]
        )
        clustered = _finite(summary.clustered_stderr)
        return {
            "mean": summary.mean,
            "stderr": _finite(summary.stderr) if clustered is None else clustered,
            "stderr_naive": _finite(summary.stderr),
            "stderr_clustered": clustered,
            "clusters": summary.num_clusters,
            "wilson": None if summary.wilson is None else list(summary.wilson),
            "n": summary.n,
        }

    def _groups(self, places: Sequence[int]) -> dict[str, dict[str, list[int]]]:
        """Return, for each field of the samples, the places of those that share a value."""
        groups: dict[str, dict[str, list[int]]] = {}
        for place in places:
            for name, value in self._fields[place].items():
                if value is not None:
                    groups.setdefault(name, {}).setdefault(str(value), []).append(place)
        return groups


def variant_of(fields: Iterable[Mapping[str, object]]) -> str:
    """Return the variant of the data that all samples with these fields are of, "" where there is none or several."""
    variants = {each.get("variant") for each in fields}
    return str(*variants) if len(variants) == 1 and None not in variants else ""


def _num_expected(manifest: dict, task: str) -> int | None:
    """Return how many samples of a task the run has, None where the manifest does not say."""
    found: object = manifest
    for name in ("tasks", task, "num_samples"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, int) else None


def _check_known(names: Sequence[str], found: Mapping[str, _TaskScores]) -> None:
    unknown = set(names) - set().union(*(scores.names for scores in found.values()))
    if unknown:
        known = dict.fromkeys(judge.name for name in found for judge in rules.for_task(tasks.find(name).family))
        raise UnknownName(
            f"no scorer is called {', '.join(sorted(unknown)):.60}; expected one of {', '.join(known):.180}"
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
