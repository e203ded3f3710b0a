"""Requests in OpenAI's form, and with the extras of vLLM that our models have: from JSON to jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from vlm.generation.sampling import MAX_INTEGER, GenerationConfig
from vlm.serving.fields import Fields, Int64, check_schema, generation_config, read_fields
from vlm.serving.model_process.job import Job
from vlm.serving.openai.replies import ChatFormat, CompletionFormat
from vlm.serving.prompts import conversation, raw_parts
from vlm.serving.refusal import Refusal, invalid
from vlm.serving.reply_format import ReplyFormat
from vlm.serving.settings import ServerSettings

MAX_CHOICES = 8
"""Most replies to one request: prompts times `n`."""
MAX_TOP_LOGPROBS = 20
ANY_OBJECT = {"type": "object"}
_SCHEMA_PLACE = "response_format.json_schema.schema"

WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
NEUTRAL: dict[str, tuple] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_json": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "web_search_options": ({},),
}


class StreamOptions(Fields):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Generation(Fields):
    """What chat completions and completions share."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Annotated[Int64, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: str | list | None = None
    seed: Int64 | None = None
    response_format: dict | None = None


class ChatRequest(_Generation):
    messages: list
    max_completion_tokens: Annotated[Int64, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None


class CompletionRequest(_Generation):
    prompt: str | list
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, read: its jobs, and how to write their replies."""

    jobs: list[Job]
    prompts: list[int]
    """Which prompt of the request each job is about."""
    stream: bool
    format: ReplyFormat


def read_chat(body: dict, settings: ServerSettings, model: str) -> Asked:
    """Return what a chat completion asks. Raises: Refusal."""
    fields = read_fields(ChatRequest, body, without_effect=WITHOUT_EFFECT, neutral=NEUTRAL)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise invalid("top_logprobs is given and logprobs is not; expected both; set logprobs to true", "top_logprobs")
    goes_on = fields.continue_final_message
    if fields.add_generation_prompt is not None and fields.add_generation_prompt == goes_on:
        message = "add_generation_prompt and continue_final_message are equal; expected one of them; leave one out"
        raise invalid(message, "add_generation_prompt")
    job = Job(
        messages=conversation(fields.messages, settings),
        config=_config(fields, _max_tokens(fields)),
        continue_final=goes_on,
        top_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
    )
    format = ChatFormat(
        model, with_logprobs=fields.logprobs, include_usage=fields.stream and fields.stream_options.include_usage
    )
    return Asked(jobs=_choices([job], fields.n), prompts=[0] * fields.n, stream=fields.stream, format=format)


def read_completion(body: dict, settings: ServerSettings, model: str) -> Asked:
    """Return what a completion asks. Its prompt is a text, a list of texts, or a list of parts as in a message."""
    fields = read_fields(CompletionRequest, body, without_effect=WITHOUT_EFFECT, neutral=NEUTRAL)
    prompts = _prompts(fields.prompt)
    if len(prompts) * fields.n > MAX_CHOICES:
        raise invalid(f"{len(prompts)} prompts times n={fields.n}; expected at most {MAX_CHOICES}; ask in parts", "n")
    config = _config(fields, fields.max_tokens)
    jobs = [Job(parts=raw_parts(prompt, settings), config=config, top_logprobs=fields.logprobs) for prompt in prompts]
    format = CompletionFormat(
        model,
        with_logprobs=fields.logprobs is not None,
        include_usage=fields.stream and fields.stream_options.include_usage,
    )
    places = [place for place in range(len(prompts)) for _ in range(fields.n)]
    return Asked(jobs=_choices(jobs, fields.n), prompts=places, stream=fields.stream, format=format)


def _prompts(prompt: str | list) -> list[str | list]:
    """Return the prompts of a completion."""
    if isinstance(prompt, str):
        return [prompt]
    if any(isinstance(part, int) for part in prompt) or any(isinstance(part, list) for part in prompt):
        raise invalid("prompt holds token ids; expected texts; send what they stand for", "prompt")
    return list(prompt) if prompt and all(isinstance(part, str) for part in prompt) else [prompt]


def _choices(jobs: Sequence[Job], n: int) -> list[Job]:
    """Return each job `n` times, with a seed of its own where there is one."""

    def seeded(job: Job, number: int) -> Job:
        if job.config.seed is None or number == 0:
            return job
        return replace(job, config=replace(job.config, seed=(job.config.seed + number) % MAX_INTEGER))

    return [seeded(job, number) for job in jobs for number in range(n)]


def _max_tokens(fields: ChatRequest) -> int | None:
    given = {each for each in (fields.max_tokens, fields.max_completion_tokens) if each is not None}
    if len(given) > 1:
        raise invalid("max_tokens and max_completion_tokens differ; expected one of them; leave one out", "max_tokens")
    return given.pop() if given else None


def _config(fields: _Generation, max_tokens: int | None) -> GenerationConfig:
    return generation_config(
        {"schema": _SCHEMA_PLACE},
        max_new_tokens=max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=None if fields.top_k == -1 else fields.top_k,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        # As an empty field of a form: no stop text. And -1 is no seed, as with vLLM.
        stop=fields.stop or None,
        seed=None if fields.seed in (None, -1) else fields.seed % (MAX_INTEGER + 1),
        schema=_schema(fields.response_format),
    )


def _schema(response_format: dict | None) -> dict | None:
    """Return the JSON schema that a reply must follow."""
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    named = response_format.get("json_schema")
    if kind != "json_schema" or not isinstance(named, dict):
        raise Refusal(
            400,
            "invalid_request",
            'response_format is of an unknown form; expected {"type": "json_schema", "json_schema": {"schema": ...}}, '
            'or the type "json_object" or "text"',
            param="response_format",
        )
    return check_schema(named.get("schema"), _SCHEMA_PLACE)
