"""The fields of requests: which are read, which have no effect, and which would be ignored and are refused instead."""

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from vlm.errors import VLMError, shown
from vlm.sampling import GenerationConfig
from vlm.serving.refusal import Refusal, invalid

MAX_FIELDS = 200
"""Most fields of a body, and of an object in it: each that is unknown costs an error of its own."""


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


def generation_config(**named) -> GenerationConfig:
    """Return the settings of a generation; None leaves one as it is by default. Raises: Refusal."""
    try:
        return GenerationConfig(**{name: value for name, value in named.items() if value is not None})
    except VLMError as error:
        raise Refusal.of(error, param=error.message.split(" ")[0]) from None


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
    return invalid(f"{name} is {shown(error['input'])}; expected {expected}; correct it", name)
