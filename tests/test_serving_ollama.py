"""Ollama's API, asked by its official client; the engine behind it is scripted."""

import base64
import json

import ollama
import pytest
from pydantic import BaseModel

from tests.serving_engine import error_of, request, serving, spoken, status_of, texts
from vlm.serving.model_process.job import Failed, Piece, Started

PICTURE = b"\x89PNG a picture"
DATA_URL = "data:;base64," + base64.b64encode(PICTURE).decode()


@pytest.fixture(scope="module")
def server():
    with serving(names=("llama3.2-vision",), num_slots=8) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url, timeout=30)


def chat(client, content="What?", model="llama3.2-vision", **named):
    return client.chat(model=model, messages=[{"role": "user", "content": content}], **named)


def test_a_chat_is_answered_with_its_times_and_counts(client):
    reply = chat(client)
    assert (reply.message.role, reply.message.content) == ("assistant", "re: What?")
    assert (reply.done, reply.done_reason, reply.model) == (True, "stop", "llama3.2-vision")
    assert (reply.prompt_eval_count, reply.eval_count) == (7, 2)
    assert (reply.prompt_eval_duration, reply.eval_duration) == (750_000_000, 1_500_000_000)
    assert reply.total_duration > 0


def test_a_streamed_chat_is_the_same_in_lines(client):
    parts = list(chat(client, stream=True))
    assert [part.message.content for part in parts] == ["re: ", "What?", ""]
    assert [part.done for part in parts] == [False, False, True]
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", 2)


def test_no_letter_of_a_reply_breaks_the_lines_of_a_stream(client):
    """httpx, which the client reads with, ends lines at these too."""
    text = "one\u2028two\u2029three\x85four"
    assert "".join(part.message.content for part in chat(client, text, stream=True)) == f"re: {text}"


@pytest.mark.parametrize("kind", [b"Content-Type: application/x-www-form-urlencoded\r\n", b""], ids=["form", "none"])
def test_ollamas_usual_curl_is_answered(server, kind):
    raw = request("POST", "/api/generate", b'{"model": "llama3.2-vision", "prompt": "Hi", "stream": false}')
    answer = server.send(raw.replace(b"Content-Type: application/json\r\n", kind))
    assert status_of(answer) == 200
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["response"] == "re: Hi"


def test_streaming_is_the_default_as_with_ollama(server):
    body = json.dumps({"model": "llama3.2-vision", "prompt": "Hi"}).encode()
    answer = server.send(request("POST", "/api/generate", body))
    assert b"content-type: application/x-ndjson" in answer.lower()
    assert answer.count(b'"done":') == 3


def test_pictures_of_a_message_stand_before_its_text(server, client):
    messages = [{"role": "user", "content": "What is it?", "images": [PICTURE, base64.b64encode(PICTURE).decode()]}]
    client.chat(model="llama3.2-vision", messages=messages)
    (turn,) = server.engine.jobs[-1].messages
    assert turn["content"] == [
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "text", "text": "What is it?"},
    ]


def test_a_last_turn_of_the_assistant_goes_on(server, client):
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one, "}]
    client.chat(model="llama3.2-vision", messages=messages)
    assert server.engine.jobs[-1].continue_final


def test_generate_takes_a_system_text_and_pictures(server, client):
    reply = client.generate(model="llama3.2-vision", prompt="What?", system="Be short.", images=[PICTURE])
    assert reply.response == "re: What?"
    system, user = server.engine.jobs[-1].messages
    assert (system["role"], texts(server.engine.jobs[-1])) == ("system", ["Be short.", "What?"])
    assert user["content"][0]["image_url"]["url"] == DATA_URL
    assert "".join(part.response for part in client.generate("llama3.2-vision", "What?", stream=True)) == "re: What?"


def test_raw_text_has_no_chat_format(server, client):
    client.generate(model="llama3.2-vision", prompt="A photo of", images=[PICTURE], raw=True)
    assert server.engine.jobs[-1].parts == [PICTURE, "A photo of"]


def test_options_reach_the_job_by_our_names(server, client):
    options = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.8,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "seed": 9,
        "num_predict": 12,
        "stop": ["\n"],
        "num_ctx": 8192,
        "num_thread": 4,
    }
    chat(client, options=options)
    config = server.engine.jobs[-1].config
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (0.5, 3, 0.8, 0.1)
    assert (config.repetition_penalty, config.seed, config.max_new_tokens, config.stop) == (1.2, 9, 12, ("\n",))
    chat(client, options={"num_predict": -1, "seed": -1})
    config = server.engine.jobs[-1].config
    assert (config.max_new_tokens, config.seed) == (None, None)


def test_a_format_is_a_schema():
    class Answer(BaseModel):
        year: int

    with serving(lambda job: spoken('{"year": 1999}')) as server:
        client = ollama.Client(host=server.url)
        reply = chat(client, model="scripted", format=Answer.model_json_schema())
        assert Answer.model_validate_json(reply.message.content).year == 1999
        assert server.engine.jobs[-1].config.schema["required"] == ["year"]
        chat(client, model="scripted", format="json")
        assert server.engine.jobs[-1].config.schema == {"type": "object"}
        chat(client, model="scripted", format="")
        assert server.engine.jobs[-1].config.schema is None


def test_logprobs_stand_beside_each_token(client):
    reply = chat(client, logprobs=True, top_logprobs=1)
    assert [(each.token, each.logprob) for each in reply.logprobs] == [("re: ", -0.5), ("What?", -0.5)]
    assert reply.logprobs[0].top_logprobs[0].token == "re: 0"


def test_nothing_to_say_means_load(server, client):
    before = len(server.engine.jobs)
    assert client.chat(model="llama3.2-vision").done_reason == "load"
    assert client.generate(model="llama3.2-vision").done_reason == "load"
    assert [part.done_reason for part in client.generate(model="llama3.2-vision", stream=True)] == ["load"]
    assert len(server.engine.jobs) == before


def test_the_model_is_told_of(client):
    (model,) = client.list().models
    assert model.model == "llama3.2-vision"
    assert (model.details.family, model.details.parameter_size) == ("mllama", "10.6B")
    assert model.size == 21_285_882_950
    about = client.show("llama3.2-vision:latest")
    assert about.capabilities == ["completion", "vision"]
    assert about.modelinfo["mllama.context_length"] == 4096
    assert client.ps().models[0].context_length == 4096


def test_the_tag_that_stands_for_none_is_taken(client):
    assert chat(client, model="llama3.2-vision:latest").message.content == "re: What?"


# Errors, in Ollama's form


def refused(call, *arguments, **named) -> ollama.ResponseError:
    def ask() -> None:
        result = call(*arguments, **named)
        if not hasattr(result, "done"):
            list(result)

    with pytest.raises(ollama.ResponseError) as caught:
        ask()
    assert "Traceback" not in caught.value.error
    return caught.value


def test_errors_have_ollamas_form_on_ollamas_routes(server, client):
    assert refused(chat, client, model="llava").status_code == 404
    assert "llama3.2-vision" in refused(chat, client, model="llava", stream=True).error
    for method, path, status in (("POST", "/api/pull", 404), ("GET", "/api/chat", 405)):
        answer = server.send(request(method, path, b"{}" if method == "POST" else b""))
        assert status_of(answer) == status
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}
    # And OpenAI's on the others.
    assert error_of(server.send(request("GET", "/v1/nothing")))["code"] == "not_found"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_failed_job_is_an_error(stream):
    with serving(lambda job: [Failed("image_corrupt", "it is no picture")]) as server:
        error = refused(chat, ollama.Client(host=server.url), model="scripted", stream=stream)
    assert (error.status_code, error.error) == (400, "it is no picture")


def test_a_stream_that_breaks_off_says_why():
    script = [Started(7), Piece("half", []), Failed("worker_lost", "the process died")]
    with serving(lambda job: script) as server:
        parts = chat(ollama.Client(host=server.url), model="scripted", stream=True)
        assert next(parts).message.content == "half"
        assert refused(lambda: parts).error == "the process died"


@pytest.mark.parametrize(
    "named",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"think": True},
        {"format": "yaml"},
        {"options": {"temperature": "hot"}},
        {"options": {"mirostat": 1}},
        {"options": {"top_p": 2.0}},
    ],
    ids=["tools", "think", "format", "type", "mirostat", "range"],
)
def test_what_is_lacking_is_refused_by_name(server, named):
    # The official client checks some of these itself.
    body = {"model": "llama3.2-vision", "messages": [{"role": "user", "content": "?"}], **named}
    answer = server.send(request("POST", "/api/chat", json.dumps(body).encode()))
    assert status_of(answer) == 400
    message = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    ((name, value),) = named.items()
    assert (next(iter(value)) if name == "options" else name) in message


@pytest.mark.parametrize("images", [["not base64!"], [7], "text", [{"a": 1}]])
def test_images_that_are_no_base64_are_refused(server, images):
    body = {"model": "llama3.2-vision", "prompt": "?", "raw": True, "images": images}
    answer = server.send(request("POST", "/api/generate", json.dumps(body).encode()))
    assert status_of(answer) == 400
    message = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert "base64" in message or "images" in message
