"""Sightline's evaluation harness: benchmarks, runs, scorers and comparisons. See `python -m eval --help`."""

import importlib

_HOME = {"clustered_stderr": "statistics", "score": "scorers"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    # Lazy, so that help does not pay for the scorers.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
