"""The progress bar: how many are answered, the time that is left, and the score so far. Silent in a pipe.

The score is that of the answers given since the run was begun or gone on with: to judge a hundred thousand earlier ones
would take four times as long as to go on.
"""

import time

from eval.records import Prediction
from eval.run.journal import RecordHead
from eval.verdicts import headline_verdict


class Progress:
    """Counts records as they come."""

    def __init__(self, num_samples: int, *, shown: bool = True):
        from tqdm import tqdm

        # None: on a terminal only.
        self._bar = tqdm(total=num_samples, unit="sample", disable=None if shown else True, dynamic_ncols=True)
        self._points: dict[str, tuple[float, int]] = {}
        """Of each task: the sum of the headline scorer's values, and how many there are."""
        self._num_errors = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def add(self, record: Prediction | RecordHead, *, again: bool = False) -> None:
        """Count `record`, and judge a whole one; with `again` its sample was counted before."""
        if self._bar.disable:
            return
        self._num_errors += record.error is not None
        if isinstance(record, Prediction):
            self._judge(record)
            self._show()
        self._bar.update(0 if again else 1)

    def start(self) -> None:
        """Count the time from here: what came before was answered by an earlier run."""
        if not self._bar.disable:
            self._show()
            self._bar.initial = self._bar.n
            self._bar.start_t = time.time()

    def _judge(self, record: Prediction) -> None:
        verdict = None if record.error is not None else headline_verdict(record)
        if verdict is not None:
            total, count = self._points.get(record.task, (0.0, 0))
            self._points[record.task] = total + verdict.value, count + 1

    def _show(self) -> None:
        scores = [f"{task} {100 * total / count:.1f}" for task, (total, count) in self._points.items()]
        errors = [f"{self._num_errors} errors"] if self._num_errors else []
        self._bar.set_postfix_str(", ".join(scores + errors), refresh=False)
