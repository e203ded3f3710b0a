"""Questions put to a server, a real one on this machine that misbehaves in every way a busy one does."""

import asyncio
import base64
import email.utils
import gc
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.backends import Answer, Failure
from eval.backends.openai import OpenAIBackend
from eval.backends.server import PatientServer, retry_after_s
from eval.records import ImageRef
from tests.eval_models import image, picture, question
from vlm import VLMError


class Server(ThreadingHTTPServer):
    """Answers "re: " and the question, unless `misbehave` says otherwise."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.tries = Counter()
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        self.misbehave = lambda text, number: None
        """From a question's text and how often it was asked to (status, headers, body), or seconds of silence."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._send(200, {}, json.dumps({"data": [{"id": "the-model"}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.tries[text] += 1
            number = server.tries[text]
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            odd = server.misbehave(text, number)
            if isinstance(odd, int | float):
                time.sleep(odd)
                odd = None
            if odd == "hang up":
                self.close_connection = True
                self.connection.close()
                return
            message = {"choices": [{"message": {"content": f"re: {text}"}, "finish_reason": "stop"}]}
            self._send(*(odd or (200, {}, json.dumps(message))))
        finally:
            with server.lock:
                server.running -= 1

    def _send(self, status: int, headers: dict, body: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def backend(server, **named) -> OpenAIBackend:
    return OpenAIBackend(server.url, "the-model", **{"first_wait_s": 0.01, "timeout_s": 20, **named})


def answered(backend: OpenAIBackend, questions) -> dict:
    with backend:
        asked = list(backend.answers([each] for each in questions))
    assert len(asked) == len(questions)
    return {each.question.sample.id: each.outcome for each in asked}


def assert_answered(outcomes: dict, questions) -> None:
    for each in questions:
        outcome = outcomes[each.sample.id]
        assert isinstance(outcome, Answer), outcome
        assert outcome.text == f"re: {each.sample.question} {each.sample.id[1:]}"


def test_a_question_is_sent_as_openai_takes_it(server):
    asked = question(0, max_new_tokens=7, images=(image(1), image(2)))
    outcomes = answered(backend(server, generation={"temperature": 0.0, "top_p": 1.0, "seed": None}), [asked])
    assert_answered(outcomes, [asked])
    (body,) = server.bodies
    first, second, text = body["messages"][0]["content"]
    assert [base64.b64decode(part["image_url"]["url"].split(",")[1]) for part in (first, second)] == [
        picture(1),
        picture(2),
    ]
    assert first["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "What is it? 0"}
    del body["messages"]
    assert body == {"model": "the-model", "max_tokens": 7, "temperature": 0.0, "top_p": 1.0}


def test_the_beginning_of_a_reply_is_sent_as_one_to_go_on_with(server):
    answered(backend(server), [question(0, prefill="Let's think")])
    (body,) = server.bodies
    assert body["messages"][-1] == {"role": "assistant", "content": "Let's think"}
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False


def test_the_key_is_sent_and_written_nowhere(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with backend(server) as asking:
        list(asking.answers([[question(0)]]))
        assert "secret" not in json.dumps([asking.describe(), asking.generation])
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"


def test_without_a_name_the_server_s_only_model_is_taken(server):
    with OpenAIBackend(server.url + "/") as asking:
        assert asking.describe() == {"backend": "openai", "name": "the-model", "base_url": server.url, "weights": None}


@pytest.mark.parametrize(
    "odd",
    [
        (429, {}, "busy"),
        (429, {"Retry-After": "0"}, json.dumps({"error": {"message": "slow down"}})),
        (500, {}, "<html>"),
        (503, {"Retry-After": "soon"}, ""),
        (200, {}, "{broken"),
        (200, {}, "[1, 2]"),
        (200, {}, json.dumps({"choices": []})),
        (200, {}, json.dumps({"choices": [{"message": {"content": None}}]})),
        "hang up",
    ],
)
def test_a_server_that_recovers_is_asked_again(server, odd):
    server.misbehave = lambda text, number: odd if number <= 2 else None
    questions = [question(number) for number in range(5)]
    assert_answered(answered(backend(server), questions), questions)
    assert set(server.tries.values()) == {3}


def test_a_question_that_never_gets_an_answer_is_the_only_one_to_fail(server):
    server.misbehave = lambda text, number: (500, {}, "it hurts") if "BAD" in text else None
    questions = [question(number, "BAD" if number == 2 else "Good?") for number in range(5)]
    outcomes = answered(backend(server, max_tries=4), questions)
    assert outcomes["q2"] == Failure(reason="no answer in 4 tries: status 500: it hurts")
    assert server.tries["BAD 2"] == 4
    assert_answered(outcomes, [each for each in questions if each.sample.id != "q2"])


def test_a_question_the_server_refuses_is_not_asked_again(server):
    too_long = json.dumps({"error": {"message": "the prompt is\ntoo long", "code": "context_length_exceeded"}})
    server.misbehave = lambda text, number: (400, {}, too_long) if "BAD" in text else None
    outcomes = answered(backend(server), [question(0, "BAD"), question(1)])
    assert outcomes["q0"].reason == "the server refused with status 400: the prompt is too long"
    assert server.tries["BAD 0"] == 1
    assert_answered(outcomes, [question(1)])


def test_half_of_a_surrogate_pair_is_sent_and_disturbs_nobody(server):
    questions = [question(0, "Half \ud83d?"), question(1)]
    assert_answered(answered(backend(server), questions), questions)


def test_a_reply_that_ended_without_a_word_is_an_empty_answer(server):
    """A model that thinks and is cut off before its answer: that is no error, and scores nothing."""
    silent = {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    server.misbehave = lambda text, number: (200, {}, json.dumps(silent))
    assert answered(backend(server), [question(0)])["q0"] == Answer(text="", finish_reason="length")
    assert server.tries["What is it? 0"] == 1


def test_a_question_that_hangs_costs_two_timeouts_and_no_other_anything(server):
    server.misbehave = lambda text, number: 5 if "BAD" in text else None
    outcomes = answered(backend(server, timeout_s=0.4), [question(0, "BAD"), question(1)])
    assert outcomes["q0"] == Failure(reason="no answer in 2 tries: nothing came within 0.4 s")
    assert_answered(outcomes, [question(1)])


def test_an_interrupt_in_the_middle_of_a_question_leaves_no_complaint(server, monkeypatch, caplog):
    """A signal may come while a request is made; asyncio would write the traceback of a task nobody asked for."""

    async def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(PatientServer, "_once", interrupted)
    with pytest.raises(KeyboardInterrupt), backend(server) as asking:
        next(asking.answers([[question(0)], [question(1)]]))
    gc.collect()
    assert not caplog.records


def test_silence_is_waited_for_no_longer_than_the_timeout(server):
    server.misbehave = lambda text, number: 5 if number == 1 else None
    assert_answered(answered(backend(server, timeout_s=0.5), [question(0)]), [question(0)])
    assert server.tries["What is it? 0"] == 2


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that were waited for, without waiting."""
    found, sleep = [], asyncio.sleep

    async def note(seconds: float) -> None:
        if seconds:
            found.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return found


def test_retry_after_is_honoured(server, waits):
    server.misbehave = lambda text, number: (429, {"Retry-After": "1.2"}, "") if number == 1 else None
    answered(backend(server), [question(0)])
    assert waits == [1.2]


def test_retry_after_may_be_a_date_and_is_never_endless():
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < retry_after_s({"retry-after": in_a_minute}) <= 60
    yesterday = email.utils.formatdate(time.time() - 86400, usegmt=True)
    found = [retry_after_s({"retry-after": text}) for text in (yesterday, "-3", "1e9", "inf", "nan", "soon", "")]
    assert found == [0, 0, 300, None, None, None, None]
    assert retry_after_s({}) is None


def test_waits_grow_to_a_limit(server, waits):
    server.misbehave = lambda text, number: (500, {}, "")
    answered(backend(server, first_wait_s=4, max_tries=6), [question(0)])
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, (4, 8, 16, 30, 30), strict=True))


def test_no_more_questions_are_asked_at_once_than_allowed(server):
    server.misbehave = lambda text, number: 0.05
    questions = [question(number) for number in range(12)]
    assert_answered(answered(backend(server, concurrency=3), questions), questions)
    assert server.most_running == 3


def test_questions_are_taken_as_they_are_needed(server):
    """A data set of any size is never held in memory as requests."""
    taken = 0

    def batches():
        nonlocal taken
        for number in range(100):
            taken += 1
            yield [question(number)]

    with backend(server, concurrency=4) as asking:
        answers = asking.answers(batches())
        next(answers)
        assert taken <= 8


def test_a_picture_that_cannot_be_read_is_its_question_s_failure(server, tmp_path):
    gone = ImageRef(id="gone.png", path=tmp_path / "gone.png")
    outcomes = answered(backend(server), [question(0, images=(gone,)), question(1)])
    assert "gone.png" in outcomes["q0"].reason
    assert_answered(outcomes, [question(1)])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_ends_the_run_and_keeps_what_was_answered(server, status):
    server.misbehave = lambda text, number: (status, {}, "no") if len(server.bodies) > 2 else None
    questions = [question(number) for number in range(6)]
    kept = []
    with backend(server, concurrency=1) as asking:
        answers = asking.answers([each] for each in questions)
        kept += [next(answers), next(answers)]
        with pytest.raises(VLMError, match=f"status {status}: no; check --base-url, --model and OPENAI_API_KEY"):
            next(answers)
    assert_answered({each.question.sample.id: each.outcome for each in kept}, questions[:2])


def test_a_server_that_is_not_there_ends_the_run():
    asking = OpenAIBackend("http://127.0.0.1:9/v1", "m", first_wait_s=0.01, max_tries=2)
    with asking, pytest.raises(VLMError, match="cannot be reached") as caught:
        next(asking.answers([[question(0)]]))
    assert caught.value.code == "device_unavailable"


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://me:secret@host/v1"])
def test_an_address_that_is_none_is_refused_and_a_password_not_repeated(url):
    with pytest.raises(VLMError) as caught:
        OpenAIBackend(url)
    assert "secret" not in caught.value.message
