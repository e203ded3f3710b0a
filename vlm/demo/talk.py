"""A conversation about pictures, as the page holds it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from vlm.reply import Reply


@dataclass(frozen=True)
class Turn:
    """A question and its answer, as far as it is written."""

    question: str
    reply: Reply | None = None

    @property
    def answer(self) -> str:
        return self.reply.text if self.reply else ""


@dataclass(frozen=True)
class Talk:
    """What was said about some pictures, which stand before the first question."""

    pictures: tuple[str, ...] = ()
    """Paths."""
    turns: tuple[Turn, ...] = ()

    @property
    def reply(self) -> Reply | None:
        """The last answer."""
        return self.turns[-1].reply if self.turns else None

    def messages(self, read: Callable[[str], object]) -> list[dict]:
        """Return the conversation up to its last question; `read` makes an image of a path."""
        messages = []
        for index, turn in enumerate(self.turns):
            images = [{"type": "image", "image": read(path)} for path in self.pictures] if index == 0 else []
            messages.append({"role": "user", "content": [*images, {"type": "text", "text": turn.question}]})
            if index < len(self.turns) - 1:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def asked(self, question: str) -> "Talk":
        return dataclasses.replace(self, turns=(*self.turns, Turn(question)))

    def answered(self, reply: Reply) -> "Talk":
        return dataclasses.replace(self, turns=(*self.turns[:-1], dataclasses.replace(self.turns[-1], reply=reply)))

    def without_last(self) -> "Talk":
        return dataclasses.replace(self, turns=self.turns[:-1])
