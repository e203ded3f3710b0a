"""Fields as newer clients send them, and errors in the words of whoever sent them. No server is started."""

import inspect

import pytest
from openai.resources.chat.completions import Completions

from vlm.serving.ollama import requests as ollama_requests
from vlm.serving.openai.requests import NEUTRAL, WITHOUT_EFFECT, ChatRequest, read_chat
from vlm.serving.refusal import Refusal
from vlm.serving.settings import ServerSettings

SETTINGS = ServerSettings()
SAY = [{"role": "user", "content": "?"}]
SCHEMA = "response_format.json_schema.schema"


def chat(**named) -> dict:
    return {"messages": SAY, **named}


def refused(read, body: dict) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(body, SETTINGS, "m")
    return caught.value


def test_a_developer_is_who_newer_clients_call_the_system():
    said = [{"role": "developer", "content": "Be short."}, *SAY]
    (job,) = read_chat({"messages": said}, SETTINGS, "m").jobs
    assert [turn["role"] for turn in job.messages] == ["system", "user"]


@pytest.mark.parametrize("seed", [-2, -(2**63), 2**63 - 1])
def test_every_64_bit_integer_is_a_seed(seed):
    (job,) = read_chat(chat(seed=seed), SETTINGS, "m").jobs
    assert 0 <= job.config.seed < 2**63
    assert read_chat(chat(seed=seed), SETTINGS, "m").jobs == [job]


@pytest.mark.parametrize(
    ("read", "body", "param"),
    [
        (
            read_chat,
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": "x" * 70_000}}}},
            SCHEMA,
        ),
        (ollama_requests.read_chat, {"format": {"a": "x" * 70_000}}, "format"),
        (ollama_requests.read_chat, {"options": {"repeat_penalty": 0}}, "repeat_penalty"),
        (ollama_requests.read_chat, {"options": {"num_predict": 10**20}}, "num_predict"),
    ],
    ids=["response_format", "format", "repeat_penalty", "num_predict"],
)
def test_an_error_names_what_the_client_sent(read, body, param):
    error = refused(read, chat(**body))
    assert (error.param, error.message.split(" ")[0]) == (param, param)


def test_an_integer_out_of_range_is_not_told_that_it_is_none():
    message = refused(read_chat, chat(max_tokens=10**20)).message
    assert message.startswith("max_tokens is an integer out of range; expected less than or equal to")


def test_every_parameter_of_the_official_client_is_known():
    known = set(ChatRequest.model_fields) | set(NEUTRAL) | WITHOUT_EFFECT
    of_the_client = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    assert set(inspect.signature(Completions.create).parameters) - of_the_client <= known
