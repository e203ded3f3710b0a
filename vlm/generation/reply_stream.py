"""A reply in pieces, as `VLM.stream` gives it."""

from collections.abc import Iterator

from vlm.errors import VLMError
from vlm.generation.batch_run import Run
from vlm.generation.reply import Reply


class ReplyStream(Iterator[str]):
    """Yields the pieces of a reply as it is written; joined they are its text."""

    def __init__(self, run: Run):
        self._run = run
        self._pieces = run.stream()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Write no further."""
        self._pieces.close()

    @property
    def reply(self) -> Reply:
        """The reply as far as it is written; its `decode_s` is known at its end."""
        reply = self._run.replies()[0]
        if isinstance(reply, VLMError):
            raise reply
        return reply
