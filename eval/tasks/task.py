"""What a task is: how rows become samples, how samples become prompts, and who judges the replies.

A benchmark of your own is one `Task`; docs/adding_a_task.md shows how.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.datasets.row import Row
from eval.datasets.table import Kind, Table
from eval.prompts import Preset
from eval.records import Prompt, Sample
from vlm.errors import UnknownName, VLMError, shown

_SAID: dict[Kind, str] = {
    "parquet": "Hugging Face parquet",
    "tsv": "VLMEvalKit TSV",
    "jsonl": "JSON lines",
    "chartqa folder": "a folder with png/ and *_human.json",
    "ai2d folder": "a folder with questions/ and images/",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One way in which a benchmark lies on disk."""

    kind: Kind
    columns: tuple[str, ...]
    """By which it is known: all of them must be there."""
    samples: Callable[[Row], Iterable[Sample]]
    """Turns a row into its sample; into one a variant where the row serves several."""
    more: tuple[str, ...] = ()
    """Columns that are read when they are there."""
    source: str = ""
    """Who publishes it so, as in "lmms-lab/ChartQA"."""
    assumed_variant: str | None = None
    """Which variant a row is that does not say so; with None it must be asked for."""
    default_variant: str | None = None
    """Which is taken of several when none is asked for; with None that is refused."""

    def fits(self, table: Table) -> bool:
        return table.kind == self.kind and set(self.columns) <= set(table.columns)

    @property
    def said(self) -> str:
        """What people call data of this kind."""
        return _SAID[self.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A benchmark."""

    name: str
    title: str
    family: str
    """Which scorers can judge it: "chartqa", "multiple_choice", "anls", ..."""
    formats: tuple[Format, ...]
    prompts: Mapping[str, Preset]
    default_prompt: str = "direct"
    scorers: tuple[str, ...] = ()
    """Those that judge a run unless others are asked for; () for all of the family."""
    headline: str = "ours"
    """The scorer whose number is reported first."""
    part: str | None = None
    """The part of the data that is taken when there are several: "test", "validation", ..."""
    halves: tuple[str, ...] = ()
    """Values of the field "split" that `split=` may ask for, besides parts."""
    variants: tuple[str, ...] = ()
    """Versions of the data that are never mixed: values of the field "variant"."""
    tsv_names: str = ""
    """How VLMEvalKit's files of this task are called, as a regular expression; for folders with several TSV files."""

    def load(
        self, path: str | Path, *, split: str | None = None, variant: str | None = None, limit: int | None = None
    ) -> Iterator[Sample]:
        """Yield the samples that lie in a folder or file, in the order of the data; the layout is recognised.

        split: parts ("test", "validation", ...) or halves (ChartQA's "human", "augmented"), with commas between.
        variant: one of `variants`. limit: how many samples at most.

        Raises: VLMError, at once for what cannot be recognised, and on the way for a row that is damaged.
        """
        from eval.tasks.loading import load

        return load(self, Path(path), split, variant, limit)

    def prompt(self, sample: Sample, preset: str | None = None, model_name: str | None = None) -> Prompt:
        """Return what a model is asked."""
        return self.prompts[self.preset(preset, model_name)](sample)

    def preset(self, name: str | None = None, model_name: str | None = None) -> str:
        """Return the name of the preset that is meant: None is the default, "meta" goes by the size in `model_name`.

        Raises: VLMError for a name that this task does not have.
        """
        name = name or self.default_prompt
        if name == "meta" and name not in self.prompts and "meta-11b" in self.prompts:
            size = re.search(r"(?<!\d)(11|90)b", model_name or "", re.IGNORECASE)
            if not size:
                raise VLMError(
                    "invalid_request",
                    f"prompt 'meta' goes by the size of the model and {shown(model_name)} says neither 11B nor 90B; "
                    "ask for 'meta-11b' or 'meta-90b'",
                )
            name = f"meta-{size[0].lower()}"
        if name not in self.prompts:
            raise self.refusal("prompt", name, self.prompts)
        return name

    def refusal(self, what: str, found: object, expected: Iterable[str]) -> UnknownName:
        """Return the error for a word that is none of those expected."""
        expected = ", ".join(expected) or "none, for it has only one"
        return UnknownName(f"{what} is {shown(found)}; {self.title} offers {expected}; choose one of them")
