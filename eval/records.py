"""What passes between the parts of the harness: a benchmark's samples, what a model is asked, and what came of it.

These are values. Where they come from stands in `datasets` and `tasks`, who answers in `backends`, who judges in
`scorers`.
"""

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from vlm.errors import VLMError
from vlm.images.gate import named_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Field = str | int | float | bool | None
"""What a sample can be grouped and filtered by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """A picture as it lies on disk, read only when it is needed. Exactly one of `path`, `data`, `load` is given."""

    id: str
    """Stable name: file name, or sha256 prefix of the bytes; standard errors are clustered by it."""
    path: str | os.PathLike[str] | None = None
    data: bytes | None = field(default=None, repr=False)
    """Encoded bytes (PNG, JPEG, ...)."""
    load: Callable[[], bytes] | None = None
    """Reads the encoded bytes out of a larger file, so that thousands of samples need no memory for pictures."""
    digest: str | None = None
    """The beginning of the bytes' SHA-256 in hex, where it is known already."""

    def __post_init__(self):
        if (self.path is not None) + (self.data is not None) + (self.load is not None) != 1:
            raise ValueError("an ImageRef takes exactly one of path, data and load")

    def read(self) -> bytes:
        """Return the encoded bytes. Raises: VLMError (invalid_request) when the file cannot be read."""
        if self.data is not None:
            return self.data
        if self.load is not None:
            return self.load()
        path = Path(self.path)
        try:
            # Of a pipe or a device there is no end to read to.
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "no regular file")
            return path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            why = error.strerror if isinstance(error, OSError) else error
            raise VLMError(
                "invalid_request",
                f"image file {path.name[:80]!r} cannot be read ({why}); expected a picture; put it back",
            ) from None

    def decoded(self) -> "Image":
        """Return the picture upright, in RGB, on white. Raises: VLMError as the image gate does."""
        return named_picture(self.read(), f"image {self.id[:80]!r}")


class Sample(Struct, frozen=True, kw_only=True):
    """One question of a benchmark."""

    id: str
    """Unique within the task; the same in every run, whatever the order of files and shards."""
    task: str
    images: tuple[ImageRef, ...]
    question: str
    targets: tuple[str, ...]
    """Accepted answers; for multiple choice the letter."""
    options: tuple[str, ...] = ()
    """Texts of A, B, C, ...; an empty one is a letter that is not offered."""
    fields: Mapping[str, Field] = {}
    """What plots and filters group by: "split", "variant", "question_type", "category", ..."""
    problem: str | None = None
    """What is damaged in a way that concerns this sample alone; it becomes an error record."""

    @property
    def cluster(self) -> str:
        """See `cluster_of`."""
        return cluster_of((image.id for image in self.images), self.fields.get("variant"), self.id)


def cluster_of(images: Iterable[str], variant: Field, sample_id: str) -> str:
    """Return what errors are clustered by: the images' ids joined; without images the sample's own id.

    "12.png@opaque" is 12.png as the variant "opaque" draws it: questions about either are about one picture.
    """
    return "+".join(image.removesuffix(f"@{variant}") for image in images) or sample_id


class Prompt(Struct, frozen=True, kw_only=True):
    """What the model is asked."""

    messages: list[dict]
    """In OpenAI's form; an image part is `{"type": "image", "image": ImageRef}`."""
    prefill: str = ""
    """Beginning of the reply, put into the model's mouth."""
    max_new_tokens: int
    name: str
    """The preset it was rendered by, as "meta-11b"."""

    def text(self) -> str:
        """Return the whole prompt as a record shows it: a header a turn, images as `<image: id>`."""
        turns = [f"{message['role']}:\n{_shown_content(message['content'])}" for message in self.messages]
        return "\n\n".join([*turns, f"assistant:\n{self.prefill}"])


def _shown_content(content: str | list[dict]) -> str:
    if isinstance(content, str):
        return content
    return "".join([part["text"] if part["type"] == "text" else f"<image: {part['image'].id}>" for part in content])


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One line of `predictions.jsonl`; the order of the fields is the file's."""

    id: str
    task: str
    key: str
    """Fingerprint of everything that decides the answer."""
    prompt: str
    """`Prompt.text()`."""
    prediction: str | None
    """What the model wrote, whole; None with an error."""
    token_ids: tuple[int, ...] | None
    finish_reason: str | None
    confidence: float | None
    target: tuple[str, ...]
    error: str | None
    """Why there is no prediction."""
    images: tuple[str, ...] = ()
    """Ids of the sample's images."""
    question: str = ""
    options: tuple[str, ...] = ()
    fields: Mapping[str, Field] = field(default_factory=dict)
    timings: Mapping[str, float] | None = None
    option_scores: tuple[tuple[float, int] | None, ...] | None = None
    """Log-probability and number of tokens of each option as the reply, None for one that is not offered; None where
    that was not measured."""

    @property
    def cluster(self) -> str:
        """See `cluster_of`."""
        return cluster_of(self.images, self.fields.get("variant"), self.id)

    def to_json(self) -> str:
        """Return the record as one line of ASCII, without its newline."""
        # ASCII also holds what UTF-8 cannot: a model may write half of a surrogate pair.
        record = {each.name: getattr(self, each.name) for each in fields(self)}
        record["fields"] = dict(self.fields)
        record["timings"] = None if self.timings is None else dict(self.timings)
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> "Prediction":
        """Return the record that a line holds. Raises: VLMError (invalid_request) for any other line."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise VLMError("invalid_request", "a line of predictions is no JSON object; expected a record; remove it")
        known = [each.name for each in fields(cls)]
        missing = [name for name in known[: known.index("images")] if name not in record]
        unknown = [str(name)[:40] for name in record if name not in known]
        if missing or unknown:
            found = f"lacks {', '.join(missing)}" if missing else f"has the unknown field {unknown[0]!r}"
            raise VLMError(
                "invalid_request",
                f"a record of predictions {found}; expected {', '.join(known)}; was it written by another program?",
            )
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError as error:
            place = str(error).rpartition("$.")[2].rstrip("`") or "a field"
            raise VLMError(
                "invalid_request",
                f"a record of predictions has {place[:40]!r} of another type than it was written with; expected the "
                "record as it was; put it back, or remove the line to have it asked again",
            ) from None
