"""The fields of requests: which are read, which have no effect, and which would be ignored and are refused instead."""

import difflib
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlm.errors import VLMError, shown
from vlm.generation.sampling import MAX_INTEGER, GenerationConfig
from vlm.serving.refusal import Refusal, invalid

MAX_FIELDS = 200
"""Most fields of a body, and of an object in it: each that is unknown costs an error of its own."""

Int64 = Annotated[int, Field(ge=-MAX_INTEGER - 1, le=MAX_INTEGER)]
"""JSON has no largest integer; what is behind this server has."""


class Fields(BaseModel):
    """Fields that are read, each of exactly its type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def read_fields(
    kind: type[Fields], body: Mapping, *, without_effect: frozenset = frozenset(), neutral: Mapping[str, tuple]
) -> Fields:
    """Return the fields of `body`. Null is as good as absent everywhere.

    without_effect: names of what does not change an answer, and may be anything.
    neutral: what would change it and is not offered, with the values that change nothing.

    Raises: Refusal, naming the field.
    """
    _check_num_fields("the body", body)
    given = {}
    for name, value in body.items():
        if value is None or name in without_effect:
            continue
        _check_num_fields(name, value)
        if name not in neutral:
            given[name] = value
        elif value not in neutral[name]:
            raise invalid(
                f"{name} is not offered by this server; expected it left out; docs/serving.md says more", name
            )
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(kind, error.errors(include_url=False, include_context=False)[0]) from None


def generation_config(sent: Mapping[str, str], **named) -> GenerationConfig:
    """Return the settings of a generation; None leaves one as it is by default.

    sent: what a client calls a setting, where that is another name than ours.

    Raises: Refusal, naming what the client sent.
    """
    try:
        return GenerationConfig(**{name: value for name, value in named.items() if value is not None})
    except VLMError as error:
        name, _, rest = error.message.partition(" ")
        param = sent.get(name, name)
        raise Refusal(400, error.code, f"{param} {rest}", param=param) from None


def check_schema(schema: object, param: str) -> dict:
    """Return `schema` if it can be one; its size is bounded by `GenerationConfig`. Raises: Refusal."""
    if not isinstance(schema, dict):
        raise invalid(f"{param} is of type {type(schema).__name__}; expected a JSON schema {{...}}; give one", param)
    return schema


def _check_num_fields(name: str, value: object) -> None:
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise invalid(f"{name:.60} has {len(value)} fields; expected at most {MAX_FIELDS}; leave out the rest")


def _refusal(kind: type[Fields], error: dict) -> Refusal:
    if not error["loc"]:
        return invalid("the name of a field is no proper text; expected one that UTF-8 can hold; correct it")
    name = str(error["loc"][0])[:60]
    if error["type"] == "extra_forbidden":
        name = ".".join(str(place) for place in error["loc"])[:60]
        near = difflib.get_close_matches(name, kind.model_fields, n=1)
        fix = f"did you mean {near[0]}?" if near else "leave it out"
        return invalid(f"there is no field {shown(name)}; {fix}", name)
    if error["type"] == "missing":
        return invalid(f"{name} is missing; give it", name)
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a ")
    return invalid(f"{name} is {_found(error['input'])}; expected {expected}; correct it", name)


def _found(value: object) -> str:
    is_long = isinstance(value, int) and abs(value) > MAX_INTEGER
    return "an integer out of range" if is_long else shown(value)
