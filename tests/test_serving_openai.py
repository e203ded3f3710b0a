"""OpenAI's API, asked by the official client; the engine behind it is scripted."""

import base64
import json

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.serving_engine import HOLD, echo, request, serving, spoken, texts
from vlm.serving.model_process.job import Failed, Piece, Started

PICTURE = "data:image/png;base64," + base64.b64encode(b"a picture").decode()


@pytest.fixture(scope="module")
def server():
    with serving(num_slots=8, max_queue=8) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return connect(server)


def connect(server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)


def ask(client: OpenAI, content="What?", **named):
    return client.chat.completions.create(
        model=named.pop("model", "scripted"), messages=[{"role": "user", "content": content}], **named
    )


# Chat completions


def test_a_reply_has_text_reason_usage_and_confidence(client):
    reply = ask(client, "What is this?")
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "re: What is this?")
    assert choice.finish_reason == "stop"
    assert choice.model_extra["confidence"] == 0.5
    assert reply.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
    }
    assert (reply.object, reply.model) == ("chat.completion", "scripted")


def test_a_stream_is_the_reply_in_pieces(client):
    chunks = list(ask(client, "What?", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "re: ", "What?", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_comes_last_in_a_stream_when_asked_for(client):
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.total_tokens == 9
    assert all(chunk.usage is None for chunk in chunks)


def test_logprobs_stand_beside_each_token(client):
    choice = ask(client, "What?", logprobs=True, top_logprobs=2).choices[0]
    first, second = choice.logprobs.content
    assert (first.token, first.logprob, bytes(first.bytes)) == ("re: ", -0.5, b"re: ")
    assert [(each.token, each.logprob) for each in second.top_logprobs] == [("What?0", -1.0), ("What?1", -2.0)]
    streamed = list(ask(client, "What?", logprobs=True, top_logprobs=2, stream=True))
    said = [token for chunk in streamed if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert said == choice.logprobs.content


def test_without_logprobs_there_are_none(client):
    assert ask(client).choices[0].logprobs is None


def test_several_choices_are_several_jobs_with_seeds_of_their_own(server, client):
    before = len(server.engine.jobs)
    reply = ask(client, n=3, seed=11, temperature=1.0)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [job.config.seed for job in server.engine.jobs[before:]] == [11, 12, 13]
    assert reply.usage.prompt_tokens == 7
    assert reply.usage.completion_tokens == 6
    by_index = dict.fromkeys(range(3), "")
    for chunk in ask(client, n=3, stream=True):
        by_index[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert by_index == dict.fromkeys(range(3), "re: What?")


def test_every_setting_reaches_the_job(server, client):
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5}
    ask(client, temperature=0.7, top_p=0.9, seed=3, stop=["\n", "END"], max_completion_tokens=9, extra_body=extra)
    config = server.engine.jobs[-1].config
    assert (config.temperature, config.top_p, config.seed, config.stop) == (0.7, 0.9, 3, ("\n", "END"))
    assert (config.top_k, config.min_p, config.repetition_penalty) == (5, 0.1, 1.5)
    assert config.max_new_tokens == 9
    ask(client, max_tokens=4, stop="x")
    assert (server.engine.jobs[-1].config.max_new_tokens, server.engine.jobs[-1].config.stops) == (4, ("x",))


def test_a_request_without_settings_is_greedy(server, client):
    ask(client)
    config = server.engine.jobs[-1].config
    assert (config.temperature, config.max_new_tokens, config.schema) == (0.0, None, None)


def test_turns_and_pictures_keep_their_order(server, client):
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"type": "text", "text": "b"},
    ]
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "why?"},
    ]
    client.chat.completions.create(model="scripted", messages=messages)
    sent = server.engine.jobs[-1].messages
    assert [turn["role"] for turn in sent] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in sent[1]["content"]] == ["text", "image_url", "image_url", "text"]
    assert sent[1]["content"][1]["image_url"] == {"url": PICTURE}


def test_the_last_turn_goes_on_when_asked_for(server, client):
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one, "}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    client.chat.completions.create(model="scripted", messages=messages, extra_body=extra)
    assert server.engine.jobs[-1].continue_final


def test_a_pydantic_class_becomes_a_schema_and_comes_back_as_an_object():
    class Answer(BaseModel):
        year: int

    with serving(lambda job: spoken('{"year"', ": 1999}")) as server:
        reply = connect(server).chat.completions.parse(
            model="scripted", messages=[{"role": "user", "content": "?"}], response_format=Answer
        )
        assert reply.choices[0].message.parsed == Answer(year=1999)
        assert server.engine.jobs[-1].config.schema["properties"]["year"] == {"title": "Year", "type": "integer"}


def test_any_object_may_be_asked_for(server, client):
    ask(client, response_format={"type": "json_object"})
    assert server.engine.jobs[-1].config.schema == {"type": "object"}
    ask(client, response_format={"type": "text"})
    assert server.engine.jobs[-1].config.schema is None


def test_what_the_model_writes_is_escaped_as_json_and_nothing_else(client):
    """P5: HTML and quotes of an answer come through as text."""
    hostile = '<img src=x onerror="alert(1)">\n</script> \u2028 \x00 {"error": 1}\n\ndata: [DONE]'
    assert ask(client, hostile).choices[0].message.content == f"re: {hostile}"
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, hostile, stream=True)]
    assert "".join(pieces) == f"re: {hostile}"
    response = client.chat.completions.with_raw_response.create(
        model="scripted", messages=[{"role": "user", "content": hostile}]
    )
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"


# Completions and models


def test_a_completion_goes_on_with_raw_text(server, client):
    reply = client.completions.create(model="scripted", prompt="Once", max_tokens=5, logprobs=1)
    (choice,) = reply.choices
    assert choice.text == "re: Once"
    assert server.engine.jobs[-1].parts == ["Once"]
    assert choice.logprobs.tokens == ["re: ", "Once"]
    assert choice.logprobs.text_offset == [0, 4]
    assert choice.logprobs.top_logprobs == [{"re: 0": -1.0}, {"Once0": -1.0}]
    assert reply.usage.total_tokens == 9


def test_a_streamed_completion_is_the_same_in_pieces(client):
    chunks = list(client.completions.create(model="scripted", prompt="Once", stream=True, logprobs=0))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "re: Once"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset] == [0, 4]


def test_several_prompts_are_several_choices(client):
    reply = client.completions.create(model="scripted", prompt=["a", "b"], n=2)
    assert [choice.text for choice in reply.choices] == ["re: a", "re: a", "re: b", "re: b"]
    assert reply.usage.prompt_tokens == 14


def test_a_base_checkpoint_is_asked_about_a_picture_by_parts(server, client):
    parts = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "A photo of"}]
    client.completions.create(model="scripted", prompt=parts)
    assert server.engine.jobs[-1].parts == [b"a picture", "A photo of"]


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").model_extra["max_model_len"] == 4096


def test_a_model_has_the_names_it_is_served_under():
    with serving(names=("meta-llama/Llama-3.2-11B-Vision-Instruct", "llava")) as server:
        client = connect(server)
        assert [model.id for model in client.models.list()] == ["meta-llama/Llama-3.2-11B-Vision-Instruct", "llava"]
        for name in ("llava", "meta-llama/Llama-3.2-11B-Vision-Instruct"):
            assert ask(client, model=name).model == name
            assert client.models.retrieve(name).id == name
        with pytest.raises(openai.NotFoundError):
            ask(client, model="scripted")


# Errors


def refused(call, *arguments, **named) -> openai.APIStatusError:
    """Return the error of the official client, after a look at its form."""
    with pytest.raises(openai.APIStatusError) as caught:
        call(*arguments, **named)
    error = caught.value
    assert set(error.body) == {"message", "type", "param", "code"}
    assert len(error.body["message"]) <= 300
    return error


@pytest.mark.parametrize(
    ("failed", "kind", "status"),
    [
        (Failed("context_length_exceeded", "too long"), openai.BadRequestError, 400),
        (Failed("image_corrupt", "no picture"), openai.BadRequestError, 400),
        (Failed("image_too_large", "a bomb"), openai.BadRequestError, 400),
        (Failed("invalid_request", "no"), openai.BadRequestError, 400),
        (Failed("worker_lost", "the process died"), openai.InternalServerError, 503),
        (Failed("timed_out", "too slow"), openai.InternalServerError, 504),
        (Failed("checkpoint_invalid", "not finite"), openai.InternalServerError, 500),
        (Failed("device_unavailable", "no memory"), openai.InternalServerError, 503),
    ],
    ids=lambda value: getattr(value, "code", None),
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_failed_job_raises_the_matching_class(failed, kind, status, stream):
    with serving(lambda job: [failed]) as server:
        error = refused(ask, connect(server), stream=stream)
    assert isinstance(error, kind)
    assert (error.status_code, error.code) == (status, failed.code)
    assert failed.message in error.body["message"]


def test_a_stream_that_breaks_off_says_why_and_is_closed():
    """H8."""
    script = [Started(7), Piece("half", []), Failed("worker_lost", "the process died")]
    with serving(lambda job: script) as server:
        pieces = []
        with pytest.raises(openai.APIError, match="the process died"):
            pieces += [chunk.choices[0].delta.content for chunk in ask(connect(server), stream=True)]
        server.engine.wait_until(lambda engine: engine.running == 0)
        raw = json.dumps({"stream": True, "messages": [{"role": "user", "content": "?"}]}).encode()
        answer = server.send(request("POST", "/v1/chat/completions", raw))
    frames = [json.loads(line[6:]) for line in answer.decode().splitlines() if line.startswith("data: ")]
    assert frames[-2]["choices"][0]["delta"]["content"] == "half"
    assert frames[-1]["error"]["code"] == "worker_lost"
    assert b"[DONE]" not in answer
    assert answer.endswith(b"0\r\n\r\n")


def test_an_engine_that_raises_is_a_fault_without_details():
    secret = RuntimeError("0xdeadbeef in /root/secret")
    for script in ([secret], [Started(7), secret]):
        with serving(lambda job, script=script: script) as server:
            error = refused(ask, connect(server))
        assert (error.status_code, error.code) == (500, "internal_error")
        assert "secret" not in error.body["message"]
    with serving(lambda job: [Started(7), Piece("half", []), secret]) as server:
        with pytest.raises(openai.APIError, match="the server failed") as caught:
            list(ask(connect(server), stream=True))
        assert "secret" not in str(caught.value)


def test_an_unknown_model_is_not_found(client):
    error = refused(ask, client, model="gpt-4o")
    assert isinstance(error, openai.NotFoundError)
    assert (error.code, error.param) == ("model_not_found", "model")
    assert "scripted" in error.body["message"]
    assert isinstance(refused(client.models.retrieve, "gpt-4o"), openai.NotFoundError)
    assert isinstance(refused(client.get, "/models/", cast_to=object), openai.NotFoundError)


def test_an_unknown_route_and_method_are_told(client):
    error = refused(client.embeddings.create, model="scripted", input="x")
    assert isinstance(error, openai.NotFoundError)
    assert error.code == "not_found"
    error = refused(client.get, "/chat/completions", cast_to=object)
    assert (error.status_code, error.code, error.response.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_requests_while_the_model_loads_are_told_to_come_back(server):
    with serving() as server:
        about, server.engine.info, server.engine.ready = server.engine.info, None, False
        client = connect(server)
        for call in (client.models.list, lambda: ask(client)):
            error = refused(call)
            assert (error.status_code, error.code, error.response.headers["retry-after"]) == (503, "loading", "5")
        assert refused(client.get, f"{server.url}/ready", cast_to=object).code == "loading"
        assert client.get(f"{server.url}/health", cast_to=object) == {"status": "ok"}
        server.engine.info, server.engine.ready = about, True
        assert client.get(f"{server.url}/ready", cast_to=object) == {"status": "ready"}
        assert ask(client).choices[0].message.content


def test_the_script_is_what_the_answer_depends_on():
    """The tests above see the engine: another script gives another answer."""
    assert texts_of(echo) != texts_of(lambda job: spoken("other"))


def texts_of(script) -> str:
    with serving(script) as server:
        return ask(connect(server)).choices[0].message.content


def test_a_held_job_is_answered_when_it_goes_on():
    with serving(lambda job: [Started(7), HOLD, *echo(job)[1:]]) as server:
        stream = ask(connect(server), stream=True)
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        server.engine.release()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "re: What?"
        assert texts(server.engine.jobs[-1]) == ["What?"]
