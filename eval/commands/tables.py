"""Scores as text for a terminal."""

from collections.abc import Iterator


def score_lines(scores: dict) -> Iterator[str]:
    """Yield the lines of a table of `scores`, which are as scores.json holds them."""
    for task, found in scores["tasks"].items():
        errors = f", {found['errors']} errors are not in the scores" if found["errors"] else ""
        yield f"{task}: {found['n']} samples{errors}"
        width = max(map(len, found["scores"]), default=0)
        for name, score in found["scores"].items():
            yield f"    {name:<{width}}  {_number(score)}"


def _number(score: dict) -> str:
    if score["mean"] is None:
        return "no sample it applies to"
    low, high = score["wilson"]
    unparsed = f", {score['unparsed']} unparsed" if score.get("unparsed") else ""
    stderr = "" if score["stderr"] is None else f" ± {100 * score['stderr']:.2f}"
    return f"{100 * score['mean']:6.2f}{stderr}  (95 %: {100 * low:.1f} to {100 * high:.1f}{unparsed})"
