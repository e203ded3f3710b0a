"""The page: scores, plots and samples put into one file that asks the network for nothing."""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from eval.report import page_data
from eval.report.facets import facets
from eval.report.picture_files import find_pictures
from eval.report.pictures import NO_ROOM, Picture, shrink
from eval.report.run import Run, read_runs
from eval.report.samples import ComparedSample, PictureName, by_task, side_by_side
from eval.report.scores import scorers_of
from eval.report.task_section import comparisons, task_section
from eval.run.folder import RunFolder, replace_file

MAX_BYTES = 30_000_000
"""Of a report of 3,000 samples, whatever their pictures and texts."""
_RESERVED_BYTES = 2_000_000
"""For the tables, the plots, the styles and the script."""
_BYTES_AROUND_PICTURE = 400
"""Its tag, and what the script knows of it besides its name."""
_STYLE, _SCRIPT = ("report.css",), ("elements.js", "rows.js", "filters.js", "sample.js", "list.js")
_SECURITY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownPictures:
    """The pictures of a report."""

    names: Sequence[PictureName]
    pictures: Sequence[Picture]
    """One a name."""
    problems: Mapping[str, str]
    """By task, why some were not found."""

    @property
    def side(self) -> int:
        """The longest side that pictures were shrunk to."""
        return max((picture.side for picture in self.pictures), default=0)

    @property
    def num_smaller(self) -> int:
        return sum(1 for picture in self.pictures if 0 < picture.side < self.side)

    @property
    def num_left_out(self) -> int:
        return sum(1 for picture in self.pictures if picture.problem == NO_ROOM)

    @property
    def encoded(self) -> list[str]:
        """Base64 of each, "" where there is none."""
        return [base64.b64encode(picture.content or b"").decode() for picture in self.pictures]


def write_report(folders: Sequence[str | os.PathLike], out: str | os.PathLike) -> None:
    """Write the report of the runs in `folders` to the file `out`, which is replaced in one step.

    Raises: VLMError for a folder that holds no answers, and where the file cannot be written.
    """
    out = Path(out)
    page = _page(read_runs(folders))
    RunFolder(out.parent).create()
    replace_file(out, page)


def _page(runs: Sequence[Run]) -> str:
    samples = side_by_side(runs)
    tasks = by_task(samples)
    scorers = {name: scorers_of(own) for name, own in tasks.items()}
    places = page_data.listed(len(samples))
    listed = [samples[place] for place in places]
    names = list(dict.fromkeys(name for sample in listed for name in sample.pictures))
    rows = page_data.rows(listed, scorers, {name: place for place, name in enumerate(names)}, page_data.MAX_TEXT_BYTES)
    told = len(page_data.script_json([name.id[:255] for name in names])) + _BYTES_AROUND_PICTURE * len(names)
    left = MAX_BYTES - _RESERVED_BYTES - len(rows.json) - told
    shown = _pictures(runs, names, max(0, left) // 4 * 3)

    sizes = {name: each.size for name, each in zip(names, shown.pictures, strict=True) if each.size}
    processor = next((run.model["processor"] for run in runs if isinstance(run.model.get("processor"), dict)), None)
    columns = {name: facets(own, sizes, processor) for name, own in tasks.items()}
    compared = comparisons(runs)
    return _rendered(
        runs=runs,
        sections=[task_section(name, own, runs, columns[name], processor, compared) for name, own in tasks.items()],
        num_samples=len(samples),
        num_listed=len(listed),
        rows=rows,
        shown=shown,
        about={
            "runs": [run.name for run in runs],
            "scorers": scorers,
            "facets": page_data.facet_columns(_of_listed(columns, tasks, places)),
            "pictures": [
                {"name": name.id[:255], "size": picture.size, "problem": picture.problem}
                for name, picture in zip(names, shown.pictures, strict=True)
            ],
        },
    )


def _pictures(runs: Sequence[Run], names: Sequence[PictureName], max_bytes: int) -> ShownPictures:
    found = find_pictures(runs, names)
    known = [name for name in names if name in found.refs]
    small = dict(zip(known, shrink([found.refs[name] for name in known], max_bytes), strict=True))
    missing = Picture(problem="the picture was not found")
    return ShownPictures(names=names, pictures=[small.get(name, missing) for name in names], problems=found.problems)


def _of_listed(
    columns: Mapping[str, Mapping[str, Sequence[str | None]]],
    tasks: Mapping[str, Sequence[ComparedSample]],
    places: Sequence[int],
) -> dict[str, list[str | None]]:
    """Return the facets of all tasks together, of the samples that are listed."""
    found = {}
    for name in dict.fromkeys(name for own in columns.values() for name in own):
        whole = [value for task, own in tasks.items() for value in columns[task].get(name) or [None] * len(own)]
        found[name] = [whole[place] for place in places]
    return found


def _rendered(*, about: dict, **shown: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("eval.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals["at"] = _in_plot
    style, script = _files(_STYLE), "(() => {\n" + _files(_SCRIPT) + "})();"
    page = environment.get_template("page.html").render(
        security=_SECURITY.format(script=_digest(script), style=_digest(style)),
        style=style,
        script=script,
        about=page_data.script_json(about),
        **shown,
    )
    # What UTF-8 cannot hold, half of a surrogate pair, becomes a reference that browsers show as a replacement mark.
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _in_plot(start: float, length: float, share: float) -> str:
    """Return where a share of a length that begins at `start` lies in a plot."""
    return f"{start + length * share:.1f}"


def _files(names: Sequence[str]) -> str:
    return "\n".join((files("eval.report") / name).read_text(encoding="ascii") for name in names)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("ascii")).digest()).decode()
