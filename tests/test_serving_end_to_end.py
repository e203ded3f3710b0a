"""`vlm serve` as a process of its own with a real, tiny model, asked by the official clients."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import ollama
import openai
import pytest
from openai import OpenAI

from eval.backends.openai import OpenAIBackend
from tests.eval_models import picture, question, save_tiny_model
from tests.serving_engine import request, status_of, wait_until
from tests.serving_process import KEY, SLOTS, ServerProcess
from vlm import VLM, GenerationConfig

# Two processes with a model in each beside this one.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serve")
    server = ServerProcess(save_tiny_model(directory / "model"), directory)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def client(server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=240)


@pytest.fixture(scope="module")
def model(server) -> VLM:
    return VLM.from_pretrained(server.folder, device="cpu")


def data_url(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(number)).decode()


def about(*numbers: int, text: str = "What is it?") -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": data_url(number)}} for number in numbers]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


CONVERSATIONS = {
    "text": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}],
    "one image": about(1),
    "two images": about(1, 2),
    "turns": [*about(2), {"role": "assistant", "content": "a chart"}, {"role": "user", "content": "Sure?"}],
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_answer_is_the_one_the_model_gives_in_process(client, model, kind):
    messages = CONVERSATIONS[kind]
    expected = model.chat(messages, config=GenerationConfig(max_new_tokens=8))
    reply = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].finish_reason == expected.finish_reason
    assert reply.choices[0].model_extra["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
    assert reply.usage.prompt_tokens == len(model.prompt_ids(messages))
    assert reply.usage.completion_tokens == len(expected.token_ids)
    chunks = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text


def test_sampling_with_a_seed_is_that_of_the_model(client, model):
    config = GenerationConfig(max_new_tokens=8, temperature=1.0, top_p=0.9, top_k=50, seed=5)
    expected = model.chat(about(3), config=config).text
    named = {"temperature": 1.0, "top_p": 0.9, "seed": 5, "max_tokens": 8, "extra_body": {"top_k": 50}}
    reply = client.chat.completions.create(model="tiny", messages=about(3), n=2, **named)
    assert reply.choices[0].message.content == expected


def test_a_completion_is_that_of_the_model(client, model):
    expected = model.complete([picture(1), "It shows"], config=GenerationConfig(max_new_tokens=6)).text
    parts = [{"type": "image_url", "image_url": {"url": data_url(1)}}, {"type": "text", "text": "It shows"}]
    assert client.completions.create(model="tiny", prompt=parts, max_tokens=6).choices[0].text == expected


def test_logprobs_are_those_of_the_logits(client, model):
    reply = client.chat.completions.create(model="tiny", messages=about(1), max_tokens=3, logprobs=True, top_logprobs=3)
    first = reply.choices[0].logprobs.content[0]
    expected = model.logits(about(1))[-1].log_softmax(-1)
    assert first.logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [each.logprob for each in first.top_logprobs] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)


def test_an_answer_follows_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "kind": {"enum": ["bar", "line"]}},
        "required": ["sure", "kind"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(model="tiny", messages=about(1), response_format=form, max_tokens=200)
    said = json.loads(reply.choices[0].message.content)
    assert said["sure"] in (True, False)
    assert said["kind"] in ("bar", "line")
    assert reply.choices[0].finish_reason == "stop"


def test_ollamas_client_gets_the_same_answer(server, model):
    client = ollama.Client(host=server.url, headers=server.headers, timeout=240)
    expected = model.chat(about(1), config=GenerationConfig(max_new_tokens=8))
    messages = [{"role": "user", "content": "What is it?", "images": [picture(1)]}]
    reply = client.chat(model="tiny", messages=messages, options={"num_predict": 8})
    assert (reply.message.content, reply.done_reason) == (expected.text, expected.finish_reason)
    parts = client.generate(
        model="tiny", prompt="What is it?", images=[picture(1)], options={"num_predict": 8}, stream=True
    )
    assert "".join(part.response for part in parts) == expected.text
    assert client.list().models[0].model == "tiny"


def test_the_harness_gets_the_same_answers_through_the_server(server, model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = [*(question(number) for number in range(5)), question(5, prefill="It is")]
    with OpenAIBackend(f"{server.url}/v1", concurrency=4) as backend:
        assert backend.name == "tiny"
        answers = {each.question.sample.id: each.outcome for each in backend.answers([each] for each in asked)}
    for each in asked:
        messages = [
            {"role": turn["role"], "content": [_opened(part) for part in turn["content"]]}
            for turn in each.prompt.messages
        ]
        prefill = [{"role": "assistant", "content": each.prompt.prefill}] if each.prompt.prefill else []
        config = GenerationConfig(max_new_tokens=each.prompt.max_new_tokens)
        expected = model.chat([*messages, *prefill], config=config, continue_final=bool(prefill))
        assert answers[each.sample.id].text == expected.text


def _opened(part: dict) -> dict:
    return {"type": "image", "image": part["image"].read()} if part["type"] == "image" else part


DOCUMENT = Path(__file__).parent.parent / "docs" / "serving.md"


@pytest.mark.parametrize("block", re.findall(r"^```bash\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE))
def test_the_commands_of_the_document_are_answered(server, block):
    if shutil.which("curl") is None:
        pytest.skip("not run: curl")
    asked = block.replace("http://127.0.0.1:8000", server.url)
    asked = asked.replace("curl ", f"curl -sS --fail-with-body -H 'Authorization: Bearer {KEY}' ")
    done = subprocess.run(["bash", "-c", asked], capture_output=True, cwd=DOCUMENT.parent.parent, timeout=240)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


# What goes wrong


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (picture(1)[:50] + bytes([picture(1)[50] ^ 255]) + picture(1)[51:], "image_corrupt"),
        (b"\x89PNG\r\n\x1a\nno picture", "image_truncated"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_unsupported"),
        (picture(1)[:-40], "image_truncated"),
        (b"", "image_empty"),
    ],
)
def test_a_bad_picture_is_refused_without_a_word_about_the_inside(client, content, code):
    """I12."""
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=messages, stream=stream)
        assert caught.value.code == code
        message = caught.value.body["message"]
        assert not any(word in message for word in ("0x", "object at", "Traceback", "/work", ".py"))
        assert len(message) <= 300


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "127.0.0.1.",
        "@127.0.0.1",
    ],
)
def test_an_image_url_reaches_nothing_on_this_machine(client, host):
    """I13, with --allow-urls: nobody knocks at a port that listens here."""
    with socket.create_server(("", 0)) as inner:
        inner.settimeout(0.2)
        url = f"http://{host}:{inner.getsockname()[1]}/secret.png"
        messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=messages)
        assert caught.value.code == "invalid_request"
        with pytest.raises(TimeoutError):
            inner.accept()


def test_what_does_not_fit_the_context_is_refused_with_both_numbers(client, model):
    """T4."""
    messages = [{"role": "user", "content": "a" * 5000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages)
    assert caught.value.code == "context_length_exceeded"
    assert str(len(model.prompt_ids(messages))) in caught.value.body["message"]
    assert str(model.info.max_context) in caught.value.body["message"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a" * 2000}], max_tokens=2500
        )
    assert "2500" in caught.value.body["message"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=CONVERSATIONS["text"], max_tokens=3001)
    assert "3000" in caught.value.body["message"]


def test_health_is_answered_while_a_long_text_is_tokenised(server, client):
    """T6: it is another process that does."""
    with ThreadPoolExecutor(1) as threads, httpx.Client(base_url=server.url) as probe:
        messages = [{"role": "user", "content": "^" * 1_000_000}]
        asked = threads.submit(client.chat.completions.create, model="tiny", messages=messages)
        times = []
        while not asked.done():
            began = time.perf_counter()
            assert probe.get("/health").status_code == 200
            times.append(time.perf_counter() - began)
            time.sleep(0.01)
        print(f"{len(times)} polls, the slowest {max(times) * 1000:.0f} ms")
        assert isinstance(asked.exception(), openai.BadRequestError)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_its_slot(server, stream):
    """H7, on the real engine: the reply would have been of 3,000 tokens."""
    body = {"messages": CONVERSATIONS["text"], "max_tokens": 3000, "stream": stream}
    raw = request("POST", "/v1/chat/completions", json.dumps(body).encode(), **server.headers)
    with socket.create_connection(("127.0.0.1", server.port)) as connected:
        connected.sendall(raw)
        wait_until(lambda: server.figure("running") == 1)
        if stream:
            assert b"200 OK" in connected.recv(1000)
    left = time.monotonic()
    wait_until(lambda: server.figure("running") == 0)
    print(f"freed after {time.monotonic() - left:.2f} s")


def test_a_full_queue_says_429_and_answers_the_rest(server, client):
    """H6 on the real engine: three slots, four places to wait, eight too many."""
    held = {"messages": CONVERSATIONS["text"], "max_tokens": 3000}
    raw = request("POST", "/v1/chat/completions", json.dumps(held).encode(), **server.headers)
    with contextlib.ExitStack() as stack:
        for _ in range(SLOTS + 4):
            connected = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connected.sendall(raw)
        wait_until(lambda: server.figure("running") + server.figure("waiting") == SLOTS + 4)
        for _ in range(8):
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="tiny", messages=about(1))
            assert int(caught.value.response.headers["retry-after"]) >= 1
    wait_until(lambda: server.figure("running") + server.figure("waiting") == 0)
    assert client.chat.completions.create(model="tiny", messages=about(1), max_tokens=2).choices[0].message.content


def test_a_killed_worker_costs_its_requests_and_nothing_more(server, client, model):
    """H10."""
    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(
            client.chat.completions.create, model="tiny", messages=CONVERSATIONS["text"], max_tokens=3000
        )
        wait_until(lambda: server.figure("running") == 1)
        os.kill(server.worker_pid(), signal.SIGKILL)
        error = lost.exception()
        assert isinstance(error, openai.InternalServerError)
        assert (error.status_code, error.code) == (503, "worker_lost")
    expected = model.chat(about(1), config=GenerationConfig(max_new_tokens=4)).text
    # It waits in the queue until the new process is ready.
    reply = client.chat.completions.create(model="tiny", messages=about(1), max_tokens=4)
    assert reply.choices[0].message.content == expected
    assert server.figure("restarts_total") == 1


def logged(line: str) -> dict:
    try:
        return json.loads(line)
    except ValueError:
        pytest.fail(f"the server logged a line that is no JSON: {line!r}")


def test_sigterm_lets_running_requests_end_and_leaves_with_0(server, client, model):
    """H9. The last test: it ends the server. What it logged is looked at afterwards."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            client.chat.completions.create, model="tiny", messages=CONVERSATIONS["text"], max_tokens=600
        )
        wait_until(lambda: server.figure("running") == 1)
        server.process.send_signal(signal.SIGTERM)

        def ready() -> int:
            with socket.create_connection(("127.0.0.1", server.port)) as connected:
                connected.sendall(request("GET", "/ready", **server.headers))
                return status_of(connected.recv(65536))

        statuses = set()
        with contextlib.suppress(OSError, IndexError):
            wait_until(lambda: statuses.add(ready()) or 503 in statuses)
        expected = model.chat(CONVERSATIONS["text"], config=GenerationConfig(max_new_tokens=600))
        assert running.result().choices[0].message.content == expected.text
        assert statuses <= {200, 503}
    assert server.process.wait(timeout=60) == 0
    lines = [logged(line) for line in server.log.read_text().splitlines()]
    assert {line["status"] for line in lines if "status" in line} >= {200, 400, 429, 499, 503}
    text = server.log.read_text()
    assert not any(secret in text for secret in (KEY, "Be short", "What is it?", data_url(1)[40:80]))


def test_a_model_that_is_not_there_ends_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vlm", "serve", "--port", "0", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert "[checkpoint_invalid]" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
