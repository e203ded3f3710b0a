"""Two runs on the same samples: how far apart they are, and whether that is more than luck."""

import math
import os

from eval.records import Prediction
from eval.run.folder import RunFolder
from eval.run.journal import read_journals
from eval.statistics import mcnemar, mean, minimum_detectable_difference, paired_bootstrap
from eval.verdicts import judges_of, verdicts
from vlm.errors import VLMError


def compare(first: str | os.PathLike, second: str | os.PathLike) -> dict:
    """Return how the second run compares with the first on the samples that both answered, by task and scorer.

    Tasks of which one run alone has answers are named beside them.

    Raises: VLMError where they have no answered sample of a task in common, or asked different questions.
    """
    runs = [_answers(folder) for folder in (first, second)]
    names = sorted(runs[0].keys() & runs[1].keys())
    common: dict[str, list[tuple[Prediction, Prediction]]] = {}
    for name in names:
        pair = runs[0][name], runs[1][name]
        _check_same_sample(*pair)
        common.setdefault(name[0], []).append(pair)
    if not common:
        raise VLMError(
            "invalid_request", "the runs have no answered sample in common; expected the same task on the same data"
        )
    tasks = {}
    for task, pairs in common.items():
        left_out = [sum(name[0] == task for name in run) - len(pairs) for run in runs]
        tasks[task] = {"n": len(pairs), "only_in_first": left_out[0], "only_in_second": left_out[1]}
        tasks[task]["scores"] = _compared(task, pairs)
    answered = [{task for task, _ in run} for run in runs]
    return {
        "first": str(first),
        "second": str(second),
        "tasks": tasks,
        "tasks_only_in_first": sorted(answered[0] - answered[1]),
        "tasks_only_in_second": sorted(answered[1] - answered[0]),
    }


def _answers(path: str | os.PathLike) -> dict[tuple[str, str], Prediction]:
    folder = RunFolder(path)
    answers = {(record.task, record.id): record for record in read_journals(folder.journals()) if record.error is None}
    if not answers:
        raise VLMError(
            "invalid_request", f"{folder.path.name!r:.80} holds no answers; expected a run's folder; run it first"
        )
    return answers


def _check_same_sample(first: Prediction, second: Prediction) -> None:
    for name in ("question", "target", "options", "images"):
        if getattr(first, name) != getattr(second, name):
            raise VLMError(
                "invalid_request",
                f"sample {first.id[:60]!r} of {first.task} has another {name} in each run; expected the same data",
            )


def _compared(task: str, pairs: list[tuple[Prediction, Prediction]]) -> dict:
    clusters = [first.cluster for first, _ in pairs]
    judged = [[verdicts(record) for record in pair] for pair in pairs]
    compared = {}
    for judge in judges_of(task):
        both = [(place, [each[judge.name] for each in pair]) for place, pair in enumerate(judged)]
        both = [(place, pair) for place, pair in both if None not in pair]
        if both:
            values = [[pair[side].value for _, pair in both] for side in (0, 1)]
            compared[judge.name] = _difference(*values, [clusters[place] for place, _ in both])
    return compared


def _difference(first: list[float], second: list[float], clusters: list[str]) -> dict:
    test = mcnemar(first, second)
    bootstrap = paired_bootstrap(first, second, clusters)
    return {
        "n": len(first),
        "clusters": len(set(clusters)),
        "first": mean(first),
        "second": mean(second),
        "difference": bootstrap.difference,
        "interval": [_finite(bound) for bound in bootstrap.interval],
        "only_first_right": None if test is None else test.only_first,
        "only_second_right": None if test is None else test.only_second,
        "p_value": None if test is None else test.p_value,
        "detectable": _finite(minimum_detectable_difference(first, second, clusters)),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
