"""Whether a checkpoint is whole and computes what the reference implementations compute.

The only part of `vlm` that imports transformers and llama-models, and only where they are installed.
"""

from vlm.verify.checks import verify
from vlm.verify.report import Report, Row

__all__ = ["Report", "Row", "verify"]
