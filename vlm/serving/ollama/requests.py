"""Requests in Ollama's form: from JSON to jobs. What Ollama ignores is ignored here too, what we lack is refused."""

from typing import Annotated

from pydantic import ConfigDict, Field

from vlm.generation.sampling import GenerationConfig
from vlm.serving.fields import Fields, Int64, check_schema, generation_config, read_fields
from vlm.serving.model_process.job import Job
from vlm.serving.ollama.replies import ChatFormat, GenerateFormat
from vlm.serving.openai.requests import ANY_OBJECT, MAX_TOP_LOGPROBS, Asked
from vlm.serving.prompts import check_num_parts, conversation, raw_parts
from vlm.serving.refusal import Refusal, invalid
from vlm.serving.settings import ServerSettings

NEUTRAL: dict[str, tuple] = {
    "context": ([],),
    "suffix": ("",),
    "template": ("",),
    "think": (False,),
    "tools": ([],),
}
_OPTIONS_NEUTRAL: dict[str, tuple] = {"frequency_penalty": (0,), "mirostat": (0,), "presence_penalty": (0,)}
_MESSAGE_FIELDS = ("role", "content", "images")


class Options(Fields):
    model_config = ConfigDict(extra="ignore")

    temperature: float | None = None
    top_k: Int64 | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: Int64 | None = None
    num_predict: Int64 | None = None
    stop: str | list | None = None


class _Generation(Fields):
    model_config = ConfigDict(extra="ignore")

    model: str = ""
    stream: bool = True
    format: str | dict = ""
    options: dict = Field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0


class ChatRequest(_Generation):
    messages: list = Field(default_factory=list)


class GenerateRequest(_Generation):
    prompt: str = ""
    system: str = ""
    images: list = Field(default_factory=list)
    raw: bool = False


def read_chat(body: dict, settings: ServerSettings, model: str) -> Asked | None:
    """Return what /api/chat asks; None where there are no messages, which is how Ollama is told to load a model."""
    fields = read_fields(ChatRequest, body, neutral=NEUTRAL)
    if not fields.messages:
        return None
    check_num_parts(fields.messages, "messages")
    messages = conversation([_message(message) for message in fields.messages], settings)
    goes_on = messages[-1]["role"] == "assistant"
    job = _job(fields, messages=messages, continue_final=goes_on)
    return _asked(fields, job, ChatFormat(model, with_logprobs=fields.logprobs))


def read_generate(body: dict, settings: ServerSettings, model: str) -> Asked | None:
    """Return what /api/generate asks; None for an empty prompt."""
    fields = read_fields(GenerateRequest, body, neutral=NEUTRAL)
    if not fields.prompt:
        return None
    check_num_parts([{"images": fields.images}], "images")
    parts = [*_images(fields.images), {"type": "text", "text": fields.prompt}]
    if fields.raw:
        job = _job(fields, parts=raw_parts(parts, settings))
    else:
        system = [{"role": "system", "content": fields.system}] if fields.system else []
        job = _job(fields, messages=conversation([*system, {"role": "user", "content": parts}], settings))
    return _asked(fields, job, GenerateFormat(model, with_logprobs=fields.logprobs))


def _message(message: object) -> object:
    """Return a message in OpenAI's form; what is none is left to be refused there."""
    if not isinstance(message, dict) or message.get("images") in (None, []):
        return {k: v for k, v in message.items() if k != "images"} if isinstance(message, dict) else message
    others = {name: value for name, value in message.items() if name not in _MESSAGE_FIELDS}
    text = {"type": "text", "text": message.get("content", "")}
    return {**others, "role": message.get("role"), "content": [*_images(message["images"]), text]}


def _images(images: object) -> list[dict]:
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise invalid("images holds something that is no base64; expected texts of base64; encode each file", "images")
    return [{"type": "image_url", "image_url": {"url": f"data:;base64,{image}"}} for image in images]


def _job(fields: _Generation, **prompt) -> Job:
    return Job(config=_config(fields), top_logprobs=fields.top_logprobs if fields.logprobs else None, **prompt)


def _asked(fields: _Generation, job: Job, format) -> Asked:
    return Asked(jobs=[job], prompts=[0], stream=fields.stream, format=format)


def _config(fields: _Generation) -> GenerationConfig:
    options = read_fields(Options, fields.options, neutral=_OPTIONS_NEUTRAL)
    # Below 1, num_predict stands for "to the end" in two ways; below 0, a seed for none.
    wanted = options.num_predict if options.num_predict is not None and options.num_predict > 0 else None
    return generation_config(
        {"repetition_penalty": "repeat_penalty", "schema": "format"},
        max_new_tokens=wanted,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repeat_penalty,
        seed=options.seed if options.seed is not None and options.seed >= 0 else None,
        stop=options.stop or None,
        schema=_schema(fields.format),
    )


def _schema(format: str | dict) -> dict | None:
    if isinstance(format, dict):
        return check_schema(format, "format")
    if format in ("", "json"):
        return ANY_OBJECT if format else None
    raise Refusal(400, "invalid_request", 'format is another word; expected "json" or a JSON schema', param="format")
