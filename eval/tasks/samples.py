"""Steps that several tasks share on the way from a row to a sample."""

import string
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from eval.datasets.pictures import Picture
from eval.datasets.row import Row
from eval.records import Field, Sample

_NO_FIELDS = frozenset(
    {
        *("id", "image", "images", "question", "answer", "answers", "options", "split"),
        # These mean something else in a record or to a scorer.
        *("task", "scorer", "prediction", "target", "targets", "option_scores", "numbered"),
    }
)


def sample(
    row: Row,
    *,
    task: str,
    images: Iterable[Picture],
    question: str,
    targets: Sequence[str],
    options: Sequence[str] = (),
    id: str = "",
    fields: dict[str, Field] | None = None,
) -> Sample:
    """Return a sample; a picture that is missing or broken is its problem. Without an id, it is named by its content.

    The part of the data that it belongs to is the field "split", unless the task has another use for that.

    Raises: VLMError for more options than there are letters.
    """
    images = tuple(images)
    _check_letters(row, options)
    problems = [image.problem for image in images if image.problem]
    part = {} if row.part is None else {"split": row.part}
    return Sample(
        id=id,
        task=task,
        images=tuple([image.ref for image in images if image.ref is not None]),
        question=question,
        targets=tuple(targets),
        options=tuple(options),
        fields=part | (fields or {}),
        problem=problems[0] if problems else None,
    )


def jsonl_sample(row: Row, task: str, fields: Mapping[str, Field] = MappingProxyType({})) -> Sample:
    """Return the sample of a row of JSON lines; docs/adding_a_task.md lists the fields.

    `answer` is a text or a list of accepted ones (also `answers`); with `options` it is a letter, or the place counted
    from 0 as a number. What else is short goes into the fields; `fields` is added to them.
    """
    options = row.texts("options")
    own_split = row.fields("split") if row.part is None else {}
    if options:
        accepted = (gold_letter(row, "answer" if "answer" in row.values else "answers", options),)
    else:
        accepted = row.texts("answers") or answers(row, "answer")
    return sample(
        row,
        task=task,
        id=given_id(row),
        images=row.images("image"),
        question=row.text("question"),
        targets=accepted,
        options=options,
        fields={**own_split, **row.fields(*[name for name in row.values if name not in _NO_FIELDS]), **fields},
    )


def given_id(row: Row) -> str:
    """Return the id that a row of JSON lines gives itself, "" where it gives none."""
    return row.text("id") if "id" in row.values else ""


def answers(row: Row, column: str) -> tuple[str, ...]:
    """Return the accepted answers of a column that holds one or a list of them, none of them empty."""
    found = row.texts(column) if isinstance(row.values.get(column), list | tuple) else (row.text(column),)
    if not found or not all(found):
        raise row.damaged(column, "an empty answer" if found else "no answer", "at least one answer, none empty")
    return found


def gold_letter(row: Row, column: str, options: Sequence[str]) -> str:
    """Return the letter of the right option, given as a letter, or as its place counted from 0."""
    _check_letters(row, options)
    value = row.values.get(column)
    letter = value.strip().upper() if isinstance(value, str) else ""
    place = string.ascii_uppercase.index(letter) if letter in [*string.ascii_uppercase] else row.integer(column)
    if not 0 <= place < len(options) or not options[place]:
        count = len(options)
        raise row.damaged(column, f"{value!r:.20}", f"the letter of one of the {count} options, or 0 to {count - 1}")
    return string.ascii_uppercase[place]


def _check_letters(row: Row, options: Sequence[str]) -> None:
    most = len(string.ascii_uppercase)
    if len(options) > most:
        raise row.damaged("options", f"{len(options)} options", f"at most {most}, a letter each")


def lettered_columns(row: Row) -> tuple[str, ...]:
    """Return the options that a TSV file has in columns A, B, C, ...; one that is not offered is an empty text."""
    texts = [row.values.get(letter) or "" for letter in string.ascii_uppercase]
    while texts and not texts[-1]:
        texts.pop()
    return tuple(str(text) for text in texts)
