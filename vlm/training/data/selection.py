"""Which samples a run's filters leave, found in one pass before it begins and kept in its folder."""

import dataclasses
import io
import json
import logging
import zipfile
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vlm.errors import VLMError
from vlm.tokenizer_files.disk import write_whole
from vlm.training.config import Filter
from vlm.training.data.batches import Source
from vlm.training.data.filters import Keeps, open_filters
from vlm.training.data.layouts import read_sample
from vlm.training.data.stored import Kept

logger = logging.getLogger(__name__)

PLACES, COUNTS = "selection.npz", "selection.json"


def select(sources: Sequence[Source], filters: Sequence[Filter], folder: Path) -> list[Source]:
    """Return the sources with those samples alone that pass all `filters`; sources and steps in their order.

    Rows that cannot be read stay, for the run to name them. What was found before, for the same filters and files, is
    taken from `folder`.

    Raises: VLMError where nothing is left of a source.
    """
    if not filters:
        return list(sources)
    wanted = [dataclasses.asdict(step) for step in filters]
    facts = {"filters": wanted, "files": [_facts(source) for source in sources]}
    places = _read(folder, json.loads(json.dumps(facts)))
    if places is None:
        places, counts = _pass(sources, filters)
        _write(folder, places, facts | {"counts": counts})
    for source, kept in zip(sources, places, strict=True):
        if not len(kept):
            raise VLMError(
                "invalid_request",
                f"the filters leave none of the {len(source.lines)} samples of {source.lines.title!s:.60}; "
                f"how many each of them left out stands in {COUNTS}; loosen them, or leave the source out",
            )
    return [source._replace(lines=Kept(source.lines, kept)) for source, kept in zip(sources, places, strict=True)]


def _pass(sources: Sequence[Source], filters: Sequence[Filter]) -> tuple[list[np.ndarray], list[dict]]:
    """Return for each source the places that are kept, and how many samples each step left out."""
    steps = open_filters(filters)
    labels = [f"{number} {step.name}" for number, step in enumerate(filters, start=1)]
    places, counts = [], []
    total = sum(len(source.lines) for source in sources)
    with tqdm(total=total, desc="filters", unit="sample", disable=None, leave=False) as bar:
        for source in sources:
            rows = source.lines
            kept, left_out = array("q"), dict.fromkeys(labels, 0)
            for place in range(len(rows)):
                failed = _first_failed(source, place, steps)
                if failed is None:
                    kept.append(place)
                else:
                    left_out[labels[failed]] += 1
                bar.update()
            places.append(np.array(kept, dtype=np.int64))
            counts.append({"source": rows.title, "samples": len(rows), "left_out": left_out, "kept": len(kept)})
            reasons = ", ".join(f"{label} {number}" for label, number in left_out.items())
            logger.warning("%s: the filters keep %d of %d samples (%s)", rows.title, len(kept), len(rows), reasons)
    return places, counts


def _first_failed(source: Source, place: int, steps: Sequence[Keeps]) -> int | None:
    """Return the number of the first step that leaves a sample out."""
    try:
        sample = read_sample(source.lines[place], source.image_folder)
    except VLMError:
        return None
    return next((number for number, keeps in enumerate(steps) if not keeps(sample)), None)


def _facts(source: Source) -> list:
    rows = source.lines
    return [rows.title, len(rows), sum(path.stat().st_size for path in rows.paths), source.digest]


def _write(folder: Path, places: Sequence[np.ndarray], report: dict) -> None:
    content = io.BytesIO()
    np.savez(content, *places)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / PLACES, content.getvalue())
        write_whole(folder / COUNTS, (json.dumps(report, indent=2) + "\n").encode())
    except OSError as error:
        raise VLMError(
            "invalid_request", f"the folder {folder.name!r:.40} cannot be used: {error.strerror}; give another out"
        ) from None


def _read(folder: Path, facts: dict) -> list[np.ndarray] | None:
    """Return the places found before, if they are of the same filters and files."""
    try:
        found = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        if {name: found.get(name) for name in facts} != facts:
            return None
        with np.load(folder / PLACES) as arrays:
            return [arrays[f"arr_{number}"] for number in range(len(facts["files"]))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
