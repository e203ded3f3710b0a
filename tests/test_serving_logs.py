"""What the server writes down of a request, for people and for Prometheus, and what it never writes down."""

import io
import json
import logging
import socket
import subprocess
import sys
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving_engine import HOLD, echo, request, serving, status_of, wait_until
from vlm.serving.http.json_lines import JsonLines, log_to
from vlm.serving.model_process.job import Started

CHAT = "/v1/chat/completions"
SECRET = "the prompt that nobody may read"
PICTURE = "data:image/png;base64,QUJDREVGRw=="
KEY = "sk-0123456789abcdef"


@pytest.fixture
def lines(monkeypatch):
    """What is logged while a test runs, parsed."""
    hooks = ((threading, "excepthook"), (sys, "excepthook"), (sys, "unraisablehook"))
    for place, name in ((logging, "lastResort"), (logging, "raiseExceptions"), *hooks):
        # As it is, so that it will be again.
        monkeypatch.setattr(place, name, getattr(place, name))
    stream = io.StringIO()
    names = ("vlm", "uvicorn", "py.warnings")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in names}
    log_to(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(False)
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


def chat(text: str = SECRET, path: str = CHAT, **headers) -> bytes:
    parts = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": text}]
    body = {"messages": [{"role": "user", "content": parts}], "stop": "a secret stop"}
    return request("POST", path, json.dumps(body).encode(), **headers)


def test_a_request_leaves_one_line_of_what_it_was(lines):
    with serving() as server:
        answer = server.send(chat(X_Request_Id="from-the-proxy.7"))
    (line,) = lines()
    assert line.pop("time")
    assert line.pop("seconds") >= 0
    assert line.pop("first_token_s") >= 0
    assert line == {
        "level": "info",
        "id": "from-the-proxy.7",
        "method": "POST",
        "route": CHAT,
        "status": 200,
        "prompt_tokens": 7,
        "tokens": 2,
        "finish_reason": "stop",
    }
    assert b"x-request-id: from-the-proxy.7" in answer.lower()


def test_no_key_no_picture_no_prompt_and_no_answer_is_written(lines, tmp_path):
    """H12, for an answer, a refusal, a fault and a wrong key."""
    (tmp_path / "keys").write_text(KEY)
    for script in (echo, lambda job: [Started(7), RuntimeError(SECRET)]):
        with serving(script, api_key_file=tmp_path / "keys") as server:
            server.send(chat(Authorization=f"Bearer {KEY}"))
            server.send(chat(Authorization=f"Bearer {KEY}wrong"))
            server.send(chat(path=f"{CHAT}?api_key={KEY}", Authorization=f"Bearer {KEY}"))
            server.send(request("POST", CHAT, SECRET.encode(), Authorization=f"Bearer {KEY}"))
            server.send(request("POST", CHAT, json.dumps({SECRET: 1}).encode(), Authorization=f"Bearer {KEY}"))
    assert len(lines()) >= 10
    text = json.dumps(lines())
    for secret in (KEY, "nobody may read", "QUJDREVGRw", "a secret stop"):
        assert secret not in text


def test_of_a_path_that_is_no_route_nothing_is_written(lines):
    """Whoever mistypes an address may have written a key into it."""
    with serving() as server:
        answer = server.send(request("GET", f"/v1/{KEY}"))
        assert status_of(answer) == 404
    (line,) = lines()
    assert line["route"] is None
    assert KEY not in json.dumps(line)


def test_of_a_websocket_nothing_is_written_but_the_request(lines):
    upgrade = {"Connection": "Upgrade, close", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    with serving() as server:
        assert status_of(server.send(request("GET", "/v1/models", **upgrade))) == 200
    assert [line["level"] for line in lines()] == ["info"]


def test_a_fault_is_noted_with_its_place_in_the_code(lines):
    with serving(lambda job: [Started(7), ZeroDivisionError(SECRET)]) as server:
        answer = server.send(chat())
    fault, access = lines()
    assert (fault["level"], fault["error"], access["error"]) == ("error", "ZeroDivisionError", "internal_error")
    assert access["id"] in fault["message"]
    assert access["id"].encode() in answer
    assert any("serving_engine.py" in place for place in fault["at"])


@pytest.mark.parametrize("path", ["/a%0a%7b%22level%22:%22error%22%7d", "/\u2028x".encode().hex(), "/" + "a" * 5000])
def test_nothing_a_client_sends_begins_another_line(lines, path):
    path = path if path.startswith("/") else "/%e2%80%a8"
    with serving() as server:
        server.send(request("GET", path, X_Request_Id="a\tb"))
        assert status_of(server.send(request("GET", "/health", X_Request_Id="x" * 65))) == 200
    first, second = lines()
    assert first["status"] == 404
    assert first["route"] is None
    assert len(first["id"]) == len(second["id"]) == 32


def test_a_client_that_left_is_told_from_a_fault(lines):
    with serving(lambda job: [Started(7), HOLD]) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connected:
            connected.sendall(chat())
            server.engine.wait_until(lambda engine: engine.running == 1)
        server.engine.wait_until(lambda engine: engine.ended == ["cut"])
    assert [line["status"] for line in lines()] == [499]


def test_a_client_that_left_while_it_sent_is_one_too(lines):
    with serving() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connected:
            connected.sendall(chat()[:-10])
        wait_until(lines)
    assert [(line["status"], "error" in line) for line in lines()] == [(499, False)]


def test_other_log_lines_are_json_of_one_line_too():
    record = logging.LogRecord("vlm.x", logging.WARNING, "x.py", 1, "a %s\nb", ("\u2028é",), None)
    line = JsonLines().format(record)
    assert line.isascii()
    assert json.loads(line)["message"] == "a \u2028é\nb"
    assert "\n" not in line


def test_what_python_and_libraries_say_is_json_too():
    says = """
import logging, sys, threading, warnings
from vlm.serving.http.json_lines import log_to
log_to(sys.stderr)
logging.getLogger("asyncio").warning("socket.send() raised exception.")
logging.getLogger("asyncio").info("nothing to say")
warnings.warn("two\\nlines", stacklevel=1)
try:
    raise ValueError("a prompt")
except ValueError as error:
    logging.getLogger("asyncio").error("it failed: %r", error, exc_info=error)
for target in (lambda: 1 / 0, sys.exit):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
class Closing:
    def __del__(self):
        raise KeyError("a prompt")
Closing()
logging.getLogger("vlm").error("%d", "a prompt")
raise SystemError("a prompt")
"""
    done = subprocess.run([sys.executable, "-c", says], capture_output=True, text=True, timeout=240)
    of_asyncio, warning, *ends = [json.loads(line) for line in done.stderr.splitlines()]
    assert (of_asyncio["logger"], of_asyncio["message"]) == ("asyncio", "socket.send() raised exception.")
    assert (warning["logger"], warning["level"]) == ("py.warnings", "warning")
    assert "UserWarning: two\nlines" in warning["message"]
    assert [end["error"] for end in ends] == ["ValueError", "ZeroDivisionError", "KeyError", "SystemError"]
    assert {end["message"] for end in ends} == {"an exception", "nothing handles an exception"}
    assert "a prompt" not in done.stderr


def test_the_figures_are_prometheus_text_and_count():
    with serving() as server:
        for _ in range(3):
            server.send(chat())
        server.send(request("GET", "/made/up"))
        server.send(request("GET", "/made/up/too"))
        answer = server.send(request("GET", "/metrics"))
    text = answer.partition(b"\r\n\r\n")[2].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counts = {tuple(sample.labels.values()): sample.value for sample in families["sightline_requests"].samples}
    assert counts[CHAT, "200"] == 3
    assert counts["other", "404"] == 2
    assert "made" not in text
    assert families["sightline_ready"].samples[0].value == 1
    assert families["sightline_num_slots"].samples[0].value == 2
    assert {"sightline_first_token_seconds", "sightline_request_seconds", "sightline_restarts"} <= set(families)
    assert b"text/plain; version=0.0.4" in answer
