"""Single values of a config.json, each checked as it is read. All raise ValueError that says what was found."""

import math

MAX_SIZE = 1 << 24


def check_fixed(found: dict, fixed: dict[str, tuple], where: str) -> None:
    """Refuse settings other than those that `fixed` has by name; `where` they stand."""
    for name, values in fixed.items():
        if found.get(name, values[0]) not in values:
            shown = type(found[name]).__name__ if isinstance(found[name], dict | list) else repr(found[name])
            raise ValueError(
                f"{where} sets {name} to {shown:.60}; only {values[0]!r} can be computed, give such a model"
            )


def section(found: dict, name: str) -> dict:
    """Return an object; left out it is empty."""
    value = found.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.40}; expected an object")
    return value


def flag(found: dict, name: str) -> bool:
    """Return true or false; left out it is false."""
    value = found.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.40}; expected true or false")
    return value


def size(found: dict, name: str, default: int, most: int = MAX_SIZE) -> int:
    """Return a whole number from 0 to `most`; left out or null it is `default`."""
    value = found.get(name)
    value = default if value is None else value
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # image_size and patch_size as (height, width)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}; expected a whole number up to {most:,}")
    return value


def sizes(found: dict, name: str, default: tuple[int, ...], most: int = MAX_SIZE) -> tuple[int, ...]:
    """Return a list of whole numbers from 0 to `most`; left out or null it is `default`."""
    values = found.get(name)
    values = list(default) if values is None else values
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value <= most for value in values):
        raise ValueError(f"{name} is {values!r:.40}; expected a list of whole numbers")
    return tuple(values)


def number(found: dict, name: str, default: float | None, most: float = 1e12) -> float:
    """Return a number above 0, up to `most`; left out or null it is `default`, and refused without one."""
    value = found.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value <= most:
        raise ValueError(f"{name} is {value!r:.40}; expected a number above 0")
    return value
