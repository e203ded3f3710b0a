"""Scores as text for a terminal."""

from collections.abc import Iterator


def score_lines(scores: dict) -> Iterator[str]:
    """Yield the lines of a table of `scores`, which are as scores.json holds them."""
    for task, found in scores["tasks"].items():
        errors = f", {found['errors']} ended in errors and are not in the scores" if found["errors"] else ""
        missing = f", {found['missing']} are not answered yet" if found["missing"] else ""
        cut_off = f", {found['cut_off']} cut off by the limit of tokens" if found["cut_off"] else ""
        variant = f" ({found['variant']})" if "variant" in found else ""
        yield f"{task}{variant}: {found['n']} samples{errors}{missing}{cut_off}"
        width = max(map(len, found["scores"]), default=0)
        for name, score in found["scores"].items():
            yield f"    {name:<{width}}  {_number(score)}"


def _number(score: dict) -> str:
    stderr = "" if score["stderr"] is None else f" ± {100 * score['stderr']:.2f}"
    wilson = "" if score["wilson"] is None else "  95 %: {:.1f} to {:.1f}".format(*(100 * x for x in score["wilson"]))
    unparsed = f"  {score['unparsed']} unparsed" if score["unparsed"] else ""
    return f"{100 * score['mean']:6.2f}{stderr}{wilson}{unparsed}"
