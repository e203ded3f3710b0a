"""A backend for workers that are killed: it needs no model, so that they start fast."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from eval.backends import Answer, Asked


@dataclass
class MortalBackend:
    """Answers with the number in the question, and leaves its process's number in `folder` while it does."""

    folder: Path
    dies_at: str | None = None
    """The id of a sample at which the process is killed, the first time it comes to it."""
    batch_size: int = 1
    name: str = "mortal"
    generation: dict = field(default_factory=dict)

    def __enter__(self) -> "MortalBackend":
        (self.folder / str(os.getpid())).touch()
        return self

    def __exit__(self, *exception) -> None:
        pass

    def describe(self) -> dict:
        return {"backend": "mortal", "name": self.name, "weights": None}

    def answers(self, batches):
        for (question,) in batches:
            died = self.folder / "died"
            if question.sample.id == self.dies_at and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
            yield Asked(question, Answer(text="".join(filter(str.isdigit, question.sample.question))))
