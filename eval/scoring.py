"""From the answers in a folder to its scores; no model is needed, and nothing but the log is read."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from eval import scorers as rules
from eval import tasks
from eval.journal import read_journals
from eval.records import Prediction
from eval.run_folder import SCORES, RunFolder
from eval.scorers.verdict import UNPARSED, Verdict
from vlm.errors import VLMError
