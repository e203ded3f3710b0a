"""Settings from a TOML or YAML file, with `key=value` on top, checked against frozen dataclasses key by key."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from vlm.errors import VLMError
from vlm.packages import needed

Settings = TypeVar("Settings")


class Given(NamedTuple):
    """A number, a date or true or false from a command line; for a key that takes a text, what was typed."""

    value: object
    text: str


def read_settings(kind: type[Settings], path: Path, overrides: Iterable[str] = ()) -> Settings:
    """Return the settings in the file `path` as a `kind`, changed by overrides such as "optimizer.lr=1e-4".

    Raises: VLMError (invalid_request) that names the key that is unknown, missing or of the wrong type.
    """
    values = _parse(path)
    for override in overrides:
        _override(values, override)
    return build(kind, values)


def build(kind: type[Settings], values: object, place: str = "") -> Settings:
    """Return `values` as the dataclass `kind`; `place` is the key they stand under."""
    if not isinstance(values, Mapping):
        raise _bad(f"{place or 'the file'} is {_shown(values)}; expected keys with values")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)!s:.150}"
            raise _bad(f"{_join(place, name)} is no key; {hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise _bad(f"{_join(place, missing[0])} is missing; expected a value; add it to the file")
    hints = typing.get_type_hints(kind)
    found = {name: _convert(hints[name], value, _join(place, name)) for name, value in values.items()}
    try:
        return kind(**found)
    except ValueError as error:
        raise _bad(f"{place}{': ' if place else ''}{error}") from None


def _convert(kind: Any, value: object, place: str) -> Any:
    """Return `value` as the type `kind` of a field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(one for one in arguments if one is not types.NoneType), value, place)
    if isinstance(value, Given):
        value = value.text if kind is str else value.value
    if origin is Literal:
        if value not in arguments:
            raise _bad(f"{place} is {_shown(value)}; expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _bad(f"{place} is {_shown(value)}; expected a list")
        return tuple(_convert(arguments[0], one, f"{place}[{index}]") for index, one in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return build(kind, value, place)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 as a text.
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
        raise _bad(f"{place} is {_shown(value)}; expected {names[kind]}")
    return value


def _parse(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise _bad(f"{path.name} cannot be read: {why}; give a TOML or YAML file") from None
    is_yaml = path.suffix in (".yaml", ".yml")
    yaml = needed("yaml", f"{path.name:.60}") if is_yaml else None
    try:
        if is_yaml:
            return yaml.safe_load(text) or {}
        if path.suffix == ".toml":
            return tomllib.loads(text)
    except Exception as error:  # noqa: BLE001 - yaml's errors share no base with tomllib's
        raise _bad(f"{path.name} cannot be parsed: {str(error).splitlines()[0]!s:.150}") from None
    raise _bad(f"{path.name!r:.60} ends with neither .toml nor .yaml; give a file of one of these kinds")


def _override(values: dict, override: str) -> None:
    """Set one key of nested values; "data.0.path" counts along a list."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise _bad(f"{override!r:.60} is no key=value; expected for example optimizer.lr=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        # No TOML, or a number of thousands of digits.
        value = text
    if not isinstance(value, str | list | dict):
        value = Given(value, text)
    *path, last = key.split(".")
    target: Any = values
    for name in path:
        target = _inside(target, name, key)
    if isinstance(target, list):
        _inside(target, last, key)
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise _bad(f"{key!s:.60} reaches into {_shown(target)}; expected a key of the file")


def _inside(target: Any, name: str, key: str) -> Any:
    if isinstance(target, dict):
        return target.setdefault(name, {})
    if isinstance(target, list) and name.isdigit() and int(name) < len(target):
        return target[int(name)]
    raise _bad(f"{key!s:.60} does not exist: {name!s:.40} is no place there; count lists from 0")


def _join(place: str, name: object) -> str:
    return f"{place}.{name!s:.60}" if place else f"{name!s:.60}"


def _shown(value: object) -> str:
    value = value.value if isinstance(value, Given) else value
    return repr(value)[:40] if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"


def _bad(message: str) -> VLMError:
    return VLMError("invalid_request", message)
