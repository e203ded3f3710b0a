"""What a line of training data says, whatever its layout: a conversation, a document or a preference."""

from dataclasses import dataclass

from vlm.prompt import Image, Text, Turn


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns of which the assistant's are learned."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """Texts and images in their order, without a chat format."""

    parts: tuple[Text | Image, ...]


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two replies to the same turns, of which one is the better."""

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str


Sample = Conversation | Document | Preference
