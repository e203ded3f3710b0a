"""Every way of judging a reply that the harness knows, by family and name.

One file holds one rule or one family of rules; `docs/adding_a_scorer.md` says how another is added. Packages outside
this one add theirs through the entry-point group `sightline.scorers`, each naming a list of `Scorer`.
"""

import functools
from collections.abc import Mapping, Sequence

from eval.scorers import (
    anls,
    chartqa,
    chartqa_mistral,
    chartqa_ours,
    chartqapro,
    likelihood,
    mathvista,
    mmmu,
    multiple_choice,
    multiple_choice_ours,
    ocrbench,
    school_maths,
    vqa_accuracy,
)
from eval.scorers.verdict import UNPARSED, Case, OptionScore, Scorer, Verdict
from eval.statistics import clustered_stderr, naive_stderr

__all__ = [
    "FAMILIES",
    "SCORERS",
    "UNPARSED",
    "Case",
    "OptionScore",
    "Scorer",
    "Verdict",
    "find",
    "for_task",
    "judge",
    "score",
]

ENTRY_POINT_GROUP = "sightline.scorers"

_MODULES = (
    *(chartqa_ours, chartqa, chartqa_mistral, multiple_choice_ours, likelihood, multiple_choice, anls, vqa_accuracy),
    *(mmmu, mathvista, ocrbench, chartqapro, school_maths),
)

SCORERS: Mapping[tuple[str, str], Scorer] = {
    (scorer.family, scorer.name): scorer for module in _MODULES for scorer in module.SCORERS
}
"""Our own scorers, (family, name) to scorer, our rule of each family first."""

STANDARD_ERRORS = {
    "lmms_eval_clustered_stderr": functools.partial(clustered_stderr, style="lmms_eval"),
    "inspect_ai_clustered_stderr": functools.partial(clustered_stderr, style="inspect_ai"),
    "lm_eval_and_lmms_eval_mean_stderr": lambda values, _: naive_stderr(values),
}
"""What other harnesses give as the error of a mean, from values and their clusters."""

FAMILIES = {
    "ai2d": "multiple_choice",
    "docvqa": "anls",
    "infovqa": "anls",
    "textvqa": "vqa_accuracy",
    "vqav2": "vqa_accuracy",
    "mmmu_open": "mmmu",
    "mmmu_pro": "multiple_choice",
}
"""The family of each task that is not called like its family."""


def find(task: str, name: str) -> Scorer:
    """Return a scorer by its name and by a task or a family. Raises: KeyError when it is not offered."""
    family = FAMILIES.get(task, task)
    offered = _every_scorer()
    if (family, name) not in offered:
        names = [scorer.name for scorer in for_task(task)]
        raise KeyError(f"no scorer {name!r} for {task!r}; expected one of {', '.join(names)}")
    return offered[family, name]


def for_task(task: str) -> list[Scorer]:
    """Return the scorers of a task or a family. Raises: KeyError for one that has none."""
    family = FAMILIES.get(task, task)
    scorers = [scorer for scorer in _every_scorer().values() if scorer.family == family]
    if not scorers:
        known = sorted({scorer.family for scorer in _every_scorer().values()} | set(FAMILIES))
        raise KeyError(f"no scorers for {task!r}; expected one of {', '.join(known)}")
    return scorers


def judge(task: str, scorer: str, prediction: str, targets: str | Sequence[str], **case) -> Verdict | None:
    """Return the verdict of a scorer on a reply, None where it does not apply. Raises: KeyError as `find` does.

    case: what `Case` holds, such as `options`; fields that no rule knows are ignored.
    """
    return find(task, scorer).judge(prediction, targets, **case)


def score(task: str, scorer: str, prediction: str, target: str | Sequence[str], **case) -> float | None:
    """Return the points of a reply in [0, 1], None where the scorer does not apply.

    The task "standard_error" takes values and their clusters in place of a reply and its target.
    Raises: KeyError for a scorer that is not offered.
    """
    if task == "standard_error":
        return STANDARD_ERRORS[scorer](prediction, target)
    verdict = judge(task, scorer, prediction, target, **case)
    return None if verdict is None else verdict.value


@functools.cache
def _every_scorer() -> dict[tuple[str, str], Scorer]:
    """Return our own scorers and those that other packages bring; ours cannot be replaced."""
    from importlib.metadata import entry_points

    plugged_in = [scorer for entry in entry_points(group=ENTRY_POINT_GROUP) for scorer in entry.load()]
    return {**SCORERS, **{(scorer.family, scorer.name): scorer for scorer in plugged_in}, **SCORERS}
