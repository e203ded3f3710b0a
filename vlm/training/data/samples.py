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


def sample_text(sample: Sample) -> str:
    """Return all that a sample says, its turns and replies a line each."""
    parts = sample.parts if isinstance(sample, Document) else [part for turn in sample.turns for part in turn.parts]
    texts = [part.text for part in parts if isinstance(part, Text)]
    return "\n".join([*texts, sample.chosen, sample.rejected] if isinstance(sample, Preference) else texts)


def sample_images(sample: Sample) -> list[object]:
    """Return the images of a sample, as it names them."""
    parts = sample.parts if isinstance(sample, Document) else [part for turn in sample.turns for part in turn.parts]
    return [part.image for part in parts if isinstance(part, Image)]
