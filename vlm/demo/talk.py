"""A conversation about pictures, as the page holds it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from vlm.generation.reply import Reply


@dataclass(frozen=True)
class Turn:
    """A question and its answer, as far as it is written."""

    question: str
    reply: Reply | None = None
    is_over: bool = False
    """Whether nothing more will be written: the answer is whole, or was stopped."""

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

    @property
    def unanswered(self) -> str:
        """The last question, while its answer is not over."""
        return self.turns[-1].question if self.turns and not self.turns[-1].is_over else ""

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
        return self._with_last(reply=reply)

    def ended(self) -> "Talk":
        return self._with_last(is_over=True)

    def without_last(self) -> "Talk":
        return dataclasses.replace(self, turns=self.turns[:-1])

    def _with_last(self, **changes) -> "Talk":
        """Return the conversation with its last turn changed, if it has one."""
        changed = [dataclasses.replace(turn, **changes) for turn in self.turns[-1:]]
        return dataclasses.replace(self, turns=(*self.turns[:-1], *changed))
