"""What the list of samples holds, as JSON for the page's script; texts that would make it too large are cut.

Lines of prompts are kept once, for most of them stand in every prompt.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from eval.records import Prediction
from eval.report.facets import in_order
from eval.report.run import Outcome
from eval.report.samples import ComparedSample, PictureName

MAX_TEXT_BYTES = 12_000_000
MAX_LISTED = 10_000
"""Samples; of more, so many are listed, evenly spread. All are in the scores."""
MAX_CHARS = (50_000, 20_000, 8_000, 3_000, 1_200, 500, 200, 80)
"""To which texts are cut, if need be: the first at which all of them fit."""
_MAX_ITEMS = 100
_TAIL = 0.4
"""Of what is kept of a text, how much is its end: there the answer stands."""


class Rows(NamedTuple):
    """The samples as text."""

    json: str
    max_chars: int
    """To which texts were cut."""
    num_cut: int
    """Texts that were."""


def listed(num_samples: int) -> Sequence[int]:
    """Return the places of the samples that the page lists: all, or as many as it can bear."""
    if num_samples <= MAX_LISTED:
        return range(num_samples)
    return [place * num_samples // MAX_LISTED for place in range(MAX_LISTED)]


def rows(
    samples: Sequence[ComparedSample],
    scorers: Mapping[str, Sequence[str]],
    pictures: Mapping[PictureName, int],
    max_bytes: int,
) -> Rows:
    """Return the rows of the list.

    scorers: of each task. pictures: their numbers.
    """
    for max_chars in MAX_CHARS:
        table = _Table(scorers, pictures, max_chars)
        text = script_json({"rows": [table.row(sample) for sample in samples], "lines": list(table.lines)})
        if len(text) <= max_bytes:
            break
    return Rows(text, max_chars, table.num_cut)


def facet_columns(facets: Mapping[str, Sequence[str | None]]) -> dict[str, dict]:
    """Return each facet as its values and, for each sample, the place of its own among them, or -1."""
    columns = {}
    for name, own in facets.items():
        values = in_order(own)
        places = {value: place for place, value in enumerate(values)}
        columns[name] = {"values": values, "of": [places.get(value, -1) for value in own]}
    return columns


def script_json(value: object) -> str:
    """Return JSON that can stand in a script element: ASCII, without a "<" that could end it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _likelihood(record: Prediction) -> list[float | None] | None:
    """Return the log-probabilities of the options, None where they were not measured."""
    if record.option_scores is None:
        return None
    return [score and round(score[0], 2) for score in record.option_scores[:_MAX_ITEMS]]


class _Table:
    """Turns samples into rows whose prompts share their lines."""

    def __init__(self, scorers: Mapping[str, Sequence[str]], pictures: Mapping[PictureName, int], max_chars: int):
        self.lines: dict[str, int] = {}
        self.num_cut = 0
        self._scorers, self._pictures, self._max_chars = scorers, pictures, max_chars

    def row(self, sample: ComparedSample) -> dict:
        record = sample.record
        return {
            "id": self._text(record.id),
            "task": record.task,
            "question": self._text(record.question),
            "options": self._texts(record.options),
            "targets": self._texts(record.target),
            "fields": self._fields(record.fields),
            "pictures": [self._pictures[name] for name in sample.pictures[:_MAX_ITEMS] if name in self._pictures],
            "runs": [outcome and self._outcome(outcome, self._scorers[record.task]) for outcome in sample.outcomes],
        }

    def _outcome(self, outcome: Outcome, scorers: Sequence[str]) -> dict:
        record = outcome.record
        found = {"prompt": self._prompt(record.prompt), "finish": self._text(record.finish_reason)}
        if not outcome.is_answer:
            return {**found, "error": self._text(record.error)}
        extracted: dict[str | None, int] = {None: -1}
        verdicts = []
        for name in scorers:
            verdict = outcome.verdicts.get(name)
            if verdict is None:
                verdicts.append(None)
                continue
            span = None if verdict.extracted is None else self._text(verdict.extracted)
            place = extracted.setdefault(span, len(extracted) - 1)
            verdicts.append([round(verdict.value, 4), place] + ([verdict.reason] if verdict.reason else []))
        confidence = record.confidence
        return {
            **found,
            "reply": self._text(record.prediction),
            "tokens": None if record.token_ids is None else len(record.token_ids),
            "confidence": round(confidence, 4) if confidence is not None and math.isfinite(confidence) else None,
            "likelihood": _likelihood(record),
            "extracted": [span for span in extracted if span is not None],
            "verdicts": verdicts,
        }

    def _prompt(self, prompt: str) -> list[int]:
        return [self.lines.setdefault(line, len(self.lines)) for line in self._text(prompt).split("\n")]

    def _fields(self, fields: Mapping[str, object]) -> dict[str, str]:
        return {self._text(name): self._text(value) for name, value in islice(fields.items(), _MAX_ITEMS)}

    def _texts(self, texts: Sequence[str]) -> list[str]:
        shown = [self._text(text) for text in texts[:_MAX_ITEMS]]
        return shown if len(texts) <= _MAX_ITEMS else [*shown, f"… {len(texts) - _MAX_ITEMS} more"]

    def _text(self, value: object) -> str:
        """Return a value as text, without its middle where it is too long."""
        text = "" if value is None else str(value)
        left_out = len(text) - self._max_chars
        if left_out <= 0:
            return text
        self.num_cut += 1
        num_last = int(self._max_chars * _TAIL)
        return f"{text[: self._max_chars - num_last]} … [{left_out} characters left out] … {text[-num_last:]}"
