"""Sightline's evaluation harness: benchmarks, runs, scorers and comparisons. See `python -m eval --help`."""

from eval.scorers import score
from eval.statistics import clustered_stderr

__all__ = ["clustered_stderr", "score"]
