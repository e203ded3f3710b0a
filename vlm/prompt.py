"""Messages to token ids, id for id as Meta builds them; opens no image and runs no model.

Ids are put together part by part. No string is ever rendered and tokenised as a whole, so that nothing that a user
writes can pass for a header, an end of turn or an image marker. Nothing is added (no default system text, no date)
and nothing is trimmed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vlm.errors import VLMError
from vlm.tokenizer import END_HEADER, START_HEADER, Tokenizer, check_num_chars

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Text:
    """Text of a prompt."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a prompt, as the caller gave it: a path, bytes, a picture, a `data:` or `http(s):` URL, ..."""

    image: object


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says in a conversation: texts and images in their order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Text | Image, ...]


class Prompt(NamedTuple):
    """What the decoder is fed: ids, with an image marker for each image, and the images in the order of the markers."""

    ids: list[int]
    images: list[object]


def parse_messages(messages: object) -> list[Turn]:
    """Return the turns of a conversation in OpenAI's form.

    `[{"role": "system"|"user"|"assistant", "content": str | [part, ...]}]`, where part is
    `{"type": "text", "text": str}`, `{"type": "image", "image": image}` or
    `{"type": "image_url", "image_url": {"url": str}}`. A `detail` beside the url is taken and has no effect: tiles are
    chosen by the picture's size. Other fields are refused unless they are null or empty, for they would be ignored.

    Raises:
        VLMError: `invalid_request`, naming the place, as in `messages[2].content[0]`.
    """
    if not isinstance(messages, list | tuple):
        raise _wrong("messages", messages, 'a list of {"role": ..., "content": ...}', "wrap a single message in [ ]")
    if not messages:
        raise VLMError("invalid_request", "messages is empty; expected at least one message; add what the user says")
    return [_parse_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def encode_prompt(
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    *,
    add_generation_prompt: bool = True,
    continue_final: bool = False,
) -> Prompt:
    """Return the prompt of a conversation: every turn closed with `<|eot_id|>`, then the header of the answer.

    With `continue_final` the last turn, which must be the assistant's, stays open and no header follows, so that what
    is generated goes on with it.

    Source: llama-models, models/llama3/chat_format.py, ChatFormat.encode_dialog_prompt.

    Raises:
        VLMError: `invalid_request`; `context_length_exceeded` when the texts together are too long to tokenise.
    """
    if continue_final and (not turns or turns[-1].role != "assistant"):
        found = f"the last message is the {turns[-1].role}'s" if turns else "there is no message"
        raise VLMError(
            "invalid_request",
            f"continue_final is set but {found}; expected an assistant message at the end; "
            "add its beginning or leave continue_final out",
        )
    _check_length(part for turn in turns for part in turn.parts)
    ids, images = [tokenizer.bos_id], []
    for turn in turns:
        ids += _encode_header(tokenizer, turn.role)
        _append_parts(tokenizer, turn.parts, ids, images)
        ids.append(tokenizer.eot_id)
    if continue_final:
        ids.pop()
    elif add_generation_prompt:
        ids += _encode_header(tokenizer, "assistant")
    return Prompt(ids, images)


def encode_completion(tokenizer: Tokenizer, parts: object) -> Prompt:
    """Return a prompt without a chat format, which base checkpoints go on with: `<|begin_of_text|>`, then the parts.

    A part is a text (every `str` is one) or an image (anything else, so a path must be a `pathlib.Path`). A single
    text may stand alone, without a list.

    Source: llama-models, models/llama3/chat_format.py, ChatFormat.encode_content.

    Raises:
        VLMError: `invalid_request`; `context_length_exceeded` when the texts together are too long to tokenise.
    """
    if isinstance(parts, str):
        parts = [parts]
    if not isinstance(parts, list | tuple):
        raise _wrong("parts", parts, "a list of texts and images", "wrap a single image in [ ]")
    if not parts:
        raise VLMError("invalid_request", "parts is empty; expected at least one text or image; add what to go on with")
    for index, part in enumerate(parts):
        if part is None:
            raise _wrong(f"parts[{index}]", part, "a text or an image", "leave it out")
    typed = [Text(part) if isinstance(part, str) else Image(part) for part in parts]
    _check_length(typed)
    ids, images = [tokenizer.bos_id], []
    _append_parts(tokenizer, typed, ids, images)
    return Prompt(ids, images)


def _parse_message(message: object, place: str) -> Turn:
    if not isinstance(message, Mapping):
        raise _wrong(place, message, '{"role": ..., "content": ...}', "give role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(f"{place}.role", role, "system, user or assistant", "tools and other roles are not supported")
    _refuse_other_fields(message, ("role", "content"), place)
    content = message.get("content")
    if isinstance(content, str):
        return Turn(role, (Text(content),))
    if not isinstance(content, list | tuple):
        raise _wrong(f"{place}.content", content, "a string or a list of parts", 'for a silent turn give ""')
    if not content:
        raise VLMError(
            "invalid_request",
            f'{place}.content is an empty list; expected at least one part; for a silent turn give ""',
        )
    return Turn(role, tuple(_parse_part(part, f"{place}.content[{index}]") for index, part in enumerate(content)))


def _parse_part(part: object, place: str) -> Text | Image:
    if not isinstance(part, Mapping):
        raise _wrong(place, part, '{"type": ...}', 'a text is {"type": "text", "text": ...}')
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in ("text", "image", "image_url"):
        raise _wrong(f"{place}.type", kind, "text, image or image_url", "other kinds of input are not supported")
    _refuse_other_fields(part, ("type", kind), place)
    value = part.get(kind)
    place = f"{place}.{kind}"
    if kind == "text":
        if not isinstance(value, str):
            raise _wrong(place, value, "a string", 'leave the part out or give ""')
        return Text(value)
    if kind == "image":
        if value is None:
            raise _wrong(place, value, "an image", "give a path, bytes, a PIL image, an array or a data: URL")
        return Image(value)
    if not isinstance(value, Mapping):
        raise _wrong(place, value, '{"url": ...}', "put the URL under url")
    _refuse_other_fields(value, ("url", "detail"), place)
    return Image(_parse_url(value.get("url"), f"{place}.url"))


def _parse_url(url: object, place: str) -> str:
    """Return a URL that can be no path, for a server's clients must not name the server's files."""
    if not isinstance(url, str) or not url[:8].lower().startswith(("data:", "http://", "https://")):
        raise _wrong(place, url, "a data:, http: or https: URL", 'a local file is {"type": "image", "image": path}')
    return url


def _refuse_other_fields(fields: Mapping, known: tuple[str, ...], place: str):
    for name, value in fields.items():
        is_empty = value is None or (isinstance(value, str | list | tuple | dict) and not value)
        if name not in known and not is_empty:
            raise VLMError(
                "invalid_request",
                f"{place} has the field {_clip(name)}; expected only {' and '.join(known)}; leave it out",
            )


def _encode_header(tokenizer: Tokenizer, role: str) -> list[int]:
    header = [tokenizer.special_ids[START_HEADER], *tokenizer.encode(role), tokenizer.special_ids[END_HEADER]]
    return header + tokenizer.encode("\n\n")


def _append_parts(tokenizer: Tokenizer, parts: Sequence[Text | Image], ids: list[int], images: list[object]):
    for part in parts:
        if isinstance(part, Text):
            ids += tokenizer.encode(part.text)
            continue
        if tokenizer.image_marker_id is None:
            raise VLMError(
                "invalid_request",
                "the prompt has an image but the model is for text only; expected text; leave the image out or "
                "take a vision model",
            )
        # Source: llama-models, chat_format.py, ChatFormat._model_input_from_tokens_images: 128011 becomes 128256.
        ids.append(tokenizer.image_marker_id)
        images.append(part.image)


def _check_length(parts):
    check_num_chars(sum(len(part.text) for part in parts if isinstance(part, Text)))


def _wrong(place: str, found: object, expected: str, fix: str) -> VLMError:
    return VLMError("invalid_request", f"{place} is {_clip(found)}; expected {expected}; {fix}")


def _clip(value: object) -> str:
    """Show the beginning of a string, escaped, and only the type of anything else."""
    if isinstance(value, str):
        return repr(value[:40]) + ("…" if len(value) > 40 else "")
    return "missing or null" if value is None else f"of type {type(value).__name__}"
