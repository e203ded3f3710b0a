"""Layouts of training data, told apart row by row: ours (OpenAI's messages), LLaVA's and LLaMA-Factory's.

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]}, …]}
    {"messages": [{"role": "user", "content": "<image>?"}, …], "images": ["a.png"]}              LLaMA-Factory, "openai"
    {"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}], "image": "a.png"}   LLaVA
    {"conversations": […], "images": ["a.png"], "system": "…"}                                 LLaMA-Factory, "sharegpt"
    {"instruction": "…", "input": "…", "output": "…", "history": [["…", "…"]]}                   LLaMA-Factory, "alpaca"
    {"text": "…"} and {"image": "a.png", "text": "its caption"}                                                documents
    any with a question at its end, "chosen" and "rejected"                                                  preferences

`<image>` stands for an image where a row names its images apart, and nowhere else. Paths are those from a folder of
images. Source: LLaVA docs/Finetune_Custom_Data.md; LLaMA-Factory data/README.md.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from vlm.errors import VLMError
from vlm.prompt import Image, Text, Turn, parse_messages
from vlm.training.data.samples import Conversation, Document, Preference, Sample

PLACEHOLDER = "<image>"
UNSUPPORTED = ("videos", "audios", "tools", "kto_tag")
"""Columns of LLaMA-Factory's that change what a row says."""
TALKS = ("messages", "conversations", "instruction")
"""Columns that make a row a conversation: sets of Alpaca's kind have the whole prompt as `text` too."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_sample(row: object, image_folder: Path) -> Sample:
    """Return what a row says; its images are not opened yet.

    Raises: VLMError (invalid_request) for a row of no known layout.
    """
    if not isinstance(row, Mapping):
        raise _bad(f"the row is a JSON {type(row).__name__}; expected an object")
    strange = next((name for name in UNSUPPORTED if row.get(name) not in (None, "", [])), None)
    if strange is not None:
        raise _bad(f"the row has {strange}, which would not be learned from; take such rows out")
    images = _images(row)
    if "chosen" in row or "rejected" in row:
        found: Sample = _preference(row, images)
    elif ("text" in row or "caption" in row) and all(row.get(name) is None for name in TALKS):
        found = _document(row, images)
    else:
        found = Conversation(turns=_spread(_turns(row), images))
        if not any(turn.role == "assistant" for turn in found.turns):
            raise _bad("the conversation has no turn of the assistant; nothing can be learned from it")
    return _located(found, image_folder)


def _turns(row: Mapping) -> list[Turn]:
    """Return the turns of a row; text still holds its placeholders."""
    if "messages" in row or isinstance(row.get("prompt"), list):
        return parse_messages(row.get("messages", row.get("prompt")))
    if "conversations" in row:
        turns = row["conversations"]
        if not isinstance(turns, list) or not turns:
            raise _bad("conversations is no list of turns; expected from and value in each")
        turns = [_speech(turn, f"conversations[{place}]") for place, turn in enumerate(turns)]
        return _with_system(row, turns)
    if isinstance(row.get("prompt"), str):
        return [Turn("user", (Text(row["prompt"]),))]
    if isinstance(row.get("instruction"), str):
        return _alpaca(row)
    raise _bad(
        f"the row has {', '.join(map(str, row))!s:.80}; expected messages, conversations, instruction, prompt or text"
    )


def _speech(turn: object, place: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise _bad(f"{place} is no object; expected from and value")
    role = ROLES.get(turn.get("from")) if isinstance(turn.get("from"), str) else None
    if role is None or not isinstance(turn.get("value"), str):
        raise _bad(f"{place} has from {turn.get('from')!r:.40}; expected human, gpt or system, and a text as value")
    return Turn(role, (Text(turn["value"]),))


def _alpaca(row: Mapping) -> list[Turn]:
    turns, history = [], row.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise _bad("history is no list of [question, answer]")
        turns += [Turn("user", (Text(pair[0]),)), Turn("assistant", (Text(pair[1]),))]
    if not isinstance(row.get("input") or "", str):
        raise _bad("input is no text; expected what the instruction is about, or none")
    question = "\n".join(text for text in (row["instruction"], row.get("input")) if text)
    turns.append(Turn("user", (Text(question),)))
    if isinstance(row.get("output"), str):
        turns.append(Turn("assistant", (Text(row["output"]),)))
    return _with_system(row, turns)


def _with_system(row: Mapping, turns: list[Turn]) -> list[Turn]:
    system = row.get("system") or ""
    if not isinstance(system, str):
        raise _bad("system is no text; expected the system text, or none")
    return [Turn("system", (Text(system),)), *turns] if system else turns


def _preference(row: Mapping, images: list[str | bytes]) -> Preference:
    turns = _spread(_turns(row), images)
    if turns[-1].role == "assistant":
        raise _bad("the turns before chosen and rejected end with the assistant's; expected the user's")
    chosen, rejected = (_reply(row.get(name), name) for name in ("chosen", "rejected"))
    return Preference(turns=turns, chosen=chosen, rejected=rejected)


def _reply(value: object, name: str) -> str:
    """Return a reply given as a text, as a turn, or as a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("content", value.get("value"))
    if not isinstance(value, str):
        raise _bad(f"{name} is missing or no text; expected a reply, or one turn of the assistant")
    return value


def _document(row: Mapping, images: list[str | bytes]) -> Document:
    text = row.get("text", row.get("caption"))
    if not isinstance(text, str):
        raise _bad("text is no string; expected the text to learn")
    if PLACEHOLDER in text and images:
        return Document(parts=_spread([Turn("user", (Text(text),))], images)[0].parts)
    return Document(parts=(*map(Image, images), Text(text)))


def _images(row: Mapping) -> list[str | bytes]:
    """Return the images that a row names apart from its turns."""
    named = row.get("images", row.get("image"))
    named = [] if named is None else [named] if isinstance(named, str | bytes) else named
    if not isinstance(named, list) or not all(isinstance(image, str | bytes) for image in named):
        raise _bad("images is no list of paths; expected paths inside the folder of images, or in parquet their bytes")
    return named


def _spread(turns: Iterable[Turn], images: list[str | bytes]) -> tuple[Turn, ...]:
    """Put the images that a row names apart where its placeholders stand."""
    turns = tuple(turns)
    if not images:
        return turns
    upcoming, count = iter(images), 0
    spread = []
    for turn in turns:
        parts: list[Text | Image] = []
        for part in turn.parts:
            texts = part.text.split(PLACEHOLDER) if isinstance(part, Text) else [None]
            if texts == [None]:
                parts.append(part)
                continue
            for place, text in enumerate(texts):
                if place:
                    count += 1
                    parts.append(Image(next(upcoming, None)))
                    # The line break beside a placeholder is the layout's, not the user's.
                    text = text.removeprefix("\n")
                if place + 1 < len(texts):
                    text = text.removesuffix("\n")
                if text or len(texts) == 1:
                    parts.append(Text(text))
        spread.append(Turn(turn.role, tuple(parts)))
    if count != len(images):
        raise _bad(f"the row has {count} {PLACEHOLDER} for {len(images)} images; expected one for each")
    return tuple(spread)


def _located(sample: Sample, folder: Path) -> Sample:
    """Return the sample with its images' paths taken from `folder`."""

    def place(parts: Iterable[Text | Image]) -> tuple[Text | Image, ...]:
        return tuple(
            Image(folder / part.image)
            if isinstance(part, Image) and isinstance(part.image, str) and not part.image.startswith("data:")
            else part
            for part in parts
        )

    if isinstance(sample, Document):
        return Document(parts=place(sample.parts))
    turns = tuple(Turn(turn.role, place(turn.parts)) for turn in sample.turns)
    if isinstance(sample, Preference):
        return Preference(turns=turns, chosen=sample.chosen, rejected=sample.rejected)
    return Conversation(turns=turns)


def _bad(message: str) -> VLMError:
    return VLMError("invalid_request", message)
