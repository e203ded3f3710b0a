"""What clients ask about, made safe to hand on: only roles, texts, and images that name no file of this machine."""

from collections.abc import Sequence

from vision_encoder.image_input import encoded_bytes
from vlm.errors import VLMError, public
from vlm.prompt import Image, Text, parse_messages
from vlm.serving.refusal import Refusal, invalid
from vlm.serving.settings import ServerSettings
from vlm.tokenizer import check_num_chars

Part = Text | Image

MAX_PARTS = 10_000
"""Most messages of a request and parts of them together: each becomes several objects many times its size."""


def check_num_parts(messages: object, param: str) -> None:
    """Refuse more messages, parts and images than may be read, before anything is made of them. Raises: Refusal."""
    found = 0
    for message in messages if isinstance(messages, list) else ():
        lists = [message.get(name) for name in ("content", "images")] if isinstance(message, dict) else []
        found += 1 + sum(len(each) for each in lists if isinstance(each, list))
    if found > MAX_PARTS:
        raise invalid(f"there are {found} messages and parts; expected at most {MAX_PARTS}; send fewer", param)


def conversation(messages: object, settings: ServerSettings) -> list[dict]:
    """Return `messages` anew, holding nothing but what a conversation consists of. Raises: Refusal."""
    check_num_parts(messages, "messages")
    try:
        turns = parse_messages([_with_known_role(message) for message in messages])
    except VLMError as error:
        raise Refusal.of(error, param="messages") from None
    _check_parts([part for turn in turns for part in turn.parts], settings, "messages")
    return [{"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in turns]


def raw_parts(content: object, settings: ServerSettings) -> list:
    """Return a prompt without a chat format, a text or a list of parts, as `VLM.complete` takes it. Raises: Refusal."""
    messages = [{"role": "user", "content": content}]
    check_num_parts(messages, "prompt")
    try:
        (turn,) = parse_messages(messages)
    except VLMError as error:
        message = error.message.replace("messages[0].content", "prompt")
        raise Refusal(400, error.code, message, param="prompt") from None
    _check_parts(turn.parts, settings, "prompt")
    try:
        return [part.text if isinstance(part, Text) else public(_image_bytes)(part.image) for part in turn.parts]
    except VLMError as error:
        raise Refusal.of(error, param="prompt") from None


def _with_known_role(message: object) -> object:
    """Return `message` with the role that the model knows where it has OpenAI's newer name for the same."""
    if isinstance(message, dict) and message.get("role") == "developer":
        return message | {"role": "system"}
    return message


def _check_parts(parts: Sequence[Part], settings: ServerSettings, param: str) -> None:
    try:
        check_num_chars(sum(len(part.text) for part in parts if isinstance(part, Text)))
    except VLMError as error:
        raise Refusal.of(error, param=param) from None
    images = [part.image for part in parts if isinstance(part, Image)]
    if len(images) > settings.max_images:
        raise invalid(f"there are {len(images)} images; expected at most {settings.max_images}; ask in parts", param)
    for image in images:
        _check_image(image, settings, param)


def _check_image(image: object, settings: ServerSettings, param: str) -> None:
    """Refuse what is no URL: as a path it would name a file of the server's."""
    start = image[:8].lower() if isinstance(image, str) else ""
    if start.startswith("data:"):
        return
    if not start.startswith(("http://", "https://")):
        raise invalid("an image is no URL; expected data:image/png;base64,...; send it so", param)
    if not settings.allow_urls:
        raise invalid("an image is an http(s) URL, and this server fetches none; send it as a data: URL", param)


def _part(part: Part) -> dict:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.image}}


def _image_bytes(url: str) -> bytes:
    if url[:5].lower() != "data:":
        raise VLMError("invalid_request", "an image of a prompt is an http(s) URL; expected a data: URL; send it so")
    return encoded_bytes(url)
