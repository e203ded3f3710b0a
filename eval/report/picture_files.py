"""Where the pictures of a report lie: the tasks' own loading finds them in the data that the manifests name."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval import tasks
from eval.records import ImageRef, Sample
from eval.report.run import Run
from eval.report.samples import PictureName
from vlm.errors import VLMError

logger = logging.getLogger(__name__)


class FoundPictures(NamedTuple):
    """What was found of the pictures that were looked for."""

    refs: Mapping[PictureName, ImageRef]
    problems: Mapping[str, str]
    """By task, why some were not."""


def find_pictures(runs: Sequence[Run], wanted: Sequence[PictureName]) -> FoundPictures:
    """Return where the wanted pictures can be read. What cannot be found is a problem that is told, never an error."""
    refs: dict[PictureName, ImageRef] = {}
    problems: dict[str, str] = {}
    for name in sorted({picture.task for picture in wanted}):
        missing = {picture for picture in wanted if picture.task == name}
        for run in runs:
            if missing and any(outcome.record.task == name for outcome in run.outcomes):
                problem = _take(run, name, missing, refs)
                problems.setdefault(name, problem or "")
        if missing:
            problems[name] = problems.get(name) or "the data has other samples now"
        else:
            problems.pop(name, None)
    return FoundPictures(refs, problems)


def _take(run: Run, task: str, missing: set[PictureName], refs: dict[PictureName, ImageRef]) -> str | None:
    """Move pictures from `missing` to `refs` as far as a run's data has them; return why it does not have more."""
    path, options = _place(run, task)
    if path is None:
        return "manifest.json does not say where the data is"
    try:
        for sample in tasks.find(task).load(path, **options):
            for picture, image in _named(task, sample):
                if picture in missing:
                    missing.remove(picture)
                    refs[picture] = image
            if not missing:
                return None
    except VLMError as error:
        return error.message
    except OSError as error:
        return f"the data cannot be read ({error.strerror})"
    except Exception as error:  # noqa: BLE001 - a task may be somebody else's code, and pictures are no reason to fail
        logger.warning("the pictures of %s cannot be found: %r", task, error)
        return f"the data cannot be read ({type(error).__name__})"
    return None


def _place(run: Run, task: str) -> tuple[Path | None, dict[str, str]]:
    """Return where a run's data lies, and what its loading was told."""
    data = run.manifest.get("data")
    path = data.get(task) if isinstance(data, dict) else data
    options = run.selection.get("options")
    options = options if isinstance(options, dict) else {}
    known = {name: options[name] for name in ("split", "variant") if isinstance(options.get(name), str)}
    return (Path(path) if isinstance(path, str) and path else None), known


def _named(task: str, sample: Sample) -> list[tuple[PictureName, ImageRef]]:
    variant = str(sample.fields.get("variant") or "")
    return [(PictureName(task=task, variant=variant, id=image.id), image) for image in sample.images]
