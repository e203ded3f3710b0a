"""Places in the server: who gets one, who is told to come back, and that nobody keeps one for nothing."""

import contextlib
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.serving_engine import HOLD, echo, error_of, received, request, serving, spoken, status_of, texts, wait_until
from vlm.serving.http.server import HTTPServer
from vlm.serving.model_process.job import Finished, Piece, Started
from vlm.serving.settings import ServerSettings

CHAT = "/v1/chat/completions"


def chat(text: str = "What?", **named) -> bytes:
    return request("POST", CHAT, json.dumps({"messages": [{"role": "user", "content": text}], **named}).encode())


def held(job) -> list:
    """Begin, wait, then answer with the request's own text."""
    return [Started(7), HOLD, *echo(job)[1:]]


def said(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]


# Queue


def test_those_who_find_no_place_are_told_at_once_and_the_rest_are_answered():
    """H6: two slots, three places to wait, ten too many; each answer is that of its own request."""
    with serving(held, num_slots=2, max_queue=3) as server, ThreadPoolExecutor(15) as threads:
        answers = [threads.submit(server.send, chat(f"number {number}")) for number in range(15)]
        wait_until(lambda: sum(answer.done() for answer in answers) == 10)
        refused = [answer.result() for answer in answers if answer.done()]
        assert all(status_of(answer) == 429 for answer in refused)
        assert all(b"retry-after: " in answer.lower() for answer in refused)
        assert {error_of(answer)["code"] for answer in refused} == {"queue_full"}
        assert {error_of(answer)["type"] for answer in refused} == {"rate_limit_error"}
        assert (server.engine.running, server.engine.waiting) == (2, 3)
        server.engine.release()
        for number, answer in enumerate(answers):
            assert status_of(answer.result()) == 429 or said(answer.result()) == f"re: number {number}"


def test_choices_that_do_not_all_find_a_place_leave_none_taken():
    with serving(held, num_slots=1, max_queue=1) as server:
        assert status_of(server.send(chat(n=3))) == 429
        server.engine.wait_until(lambda engine: engine.running == engine.waiting == 0)
        assert server.engine.ended == ["cut", "cut"]


def test_health_and_metrics_are_answered_while_all_places_are_taken():
    with serving(held, num_slots=1, max_queue=0) as server, ThreadPoolExecutor(1) as threads:
        running = threads.submit(server.send, chat())
        server.engine.wait_until(lambda engine: engine.running == 1)
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            assert status_of(server.send(request("GET", path))) == 200
        server.engine.release()
        assert said(running.result()) == "re: What?"


# Clients that leave


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", [CHAT, "/api/chat"])
@pytest.mark.parametrize("moment", ["queued", "before the first token", "in the middle"])
def test_a_client_that_leaves_frees_its_place(stream, path, moment):
    """H7."""
    script = {
        "queued": held,
        "before the first token": held,
        "in the middle": lambda job: [Started(7), Piece("a", []), HOLD, *echo(job)[1:]],
    }[moment]
    with serving(script, num_slots=1, max_queue=1) as server, ThreadPoolExecutor(1) as threads:
        if moment == "queued":
            other = threads.submit(server.send, chat("other"))
            server.engine.wait_until(lambda engine: engine.running == 1)
        body = {"messages": [{"role": "user", "content": "?"}], "stream": stream}
        with socket.create_connection(("127.0.0.1", server.port)) as connected:
            connected.sendall(request("POST", path, json.dumps(body).encode()))
            if moment == "queued":
                server.engine.wait_until(lambda engine: engine.waiting == 1)
            else:
                server.engine.wait_until(lambda engine: engine.running == 1)
            if stream and moment == "in the middle":
                assert connected.recv(100)
        left = time.monotonic()
        server.engine.wait_until(lambda engine: "cut" in engine.ended)
        print(f"freed after {time.monotonic() - left:.3f} s")
        assert len(server.engine.jobs) == 2 if moment == "queued" else 1
        if moment == "queued":
            server.engine.release()
            assert said(other.result()) == "re: other"
        server.engine.wait_until(lambda engine: engine.running == engine.waiting == 0)


def test_every_choice_of_a_client_that_leaves_is_freed():
    with serving(held, num_slots=2, max_queue=2) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connected:
            connected.sendall(chat(n=4))
            server.engine.wait_until(lambda engine: (engine.running, engine.waiting) == (2, 2))
        server.engine.wait_until(lambda engine: engine.ended == ["cut"] * 4)


def test_a_client_that_stays_loses_nothing_when_another_leaves():
    with serving(held, num_slots=2) as server, ThreadPoolExecutor(1) as threads:
        stays = threads.submit(server.send, chat("I stay"))
        server.engine.wait_until(lambda engine: engine.running == 1)
        with socket.create_connection(("127.0.0.1", server.port)) as connected:
            connected.sendall(chat("I leave"))
            server.engine.wait_until(lambda engine: engine.running == 2)
        server.engine.wait_until(lambda engine: engine.running == 1)
        server.engine.release()
        assert said(stays.result()) == "re: I stay"


def test_a_client_that_does_not_read_keeps_no_place():
    """The stream is as long as what the system's buffers hold many times over."""
    pieces = ["x" * 100_000] * 200
    with serving(lambda job: spoken(*pieces)) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(chat(stream=True))
        server.engine.wait_until(lambda engine: engine.ended == ["whole"])
        assert status_of(server.send(chat())) == 200


def test_a_run_that_ends_without_an_end_is_a_fault_and_not_a_wait():
    with serving(lambda job: [Started(7)]) as server:
        assert error_of(server.send(chat()))["code"] == "internal_error"


# The end of the server


def test_a_stopping_server_finishes_what_runs_and_takes_nothing_new():
    """H9."""
    with serving(held) as server, ThreadPoolExecutor(2) as threads:
        whole = threads.submit(server.send, chat("whole"))
        streamed = threads.submit(server.send, chat("streamed", stream=True))
        server.engine.wait_until(lambda engine: engine.running == 2)
        server.begin_drain()
        server.engine.wait_until(lambda engine: engine.draining)
        assert error_of(server.send(request("GET", "/ready")))["code"] == "draining"
        answer = server.send(chat("new"))
        assert (status_of(answer), error_of(answer)["code"]) == (503, "draining")
        assert b"retry-after: " in answer.lower()
        assert status_of(server.send(request("GET", "/health"))) == 200
        server.engine.release()
        assert said(whole.result()) == "re: whole"
        assert b"[DONE]" in streamed.result()
        server.join()
    with pytest.raises(OSError, match=r"refused|reset"), socket.create_connection(("127.0.0.1", server.port)):
        pass


def test_a_signal_begins_the_end_and_a_second_one_makes_it_short():
    server = HTTPServer(None, None, ServerSettings())
    begun = []
    server._loop = type("Loop", (), {"call_soon_threadsafe": lambda self, function: begun.append(function)})()
    server.handle_exit(signal.SIGTERM, None)
    assert (begun, server.stopped_by, server.should_exit) == ([server.begin_drain], signal.SIGTERM, False)
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, server.force_exit) == (True, True)


def test_a_model_that_will_never_load_ends_the_server():
    with serving() as server:
        server.engine.failure = RuntimeError("no such folder")
        server.join()


# Streams


def test_a_stream_comes_piece_by_piece_and_is_closed():
    with serving(lambda job: [Started(7), Piece("a", []), HOLD, *spoken("b")[1:]]) as server:
        arrived = []
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=30) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["x-accel-buffering"] == "no"
            for line in response.iter_lines():
                arrived.append(line)
                if '"a"' in line:
                    server.engine.release()
        assert arrived[-2:] == ["data: [DONE]", ""]


def test_half_characters_make_no_empty_pieces():
    events = [Started(7), Piece("", []), Piece("é", []), Finished("length", 2, 0.5, spoken()[-1].timings, [1, 2])]
    with serving(lambda job: events) as server:
        frames = [line for line in server.send(chat(stream=True)).decode().splitlines() if '"content"' in line]
    assert len(frames) == 2  # the opening, and é
    assert '"é"' in frames[1]


def test_answers_do_not_mix():
    """H11 at small size: many clients at once, each with a text of its own, some of whom leave."""

    def slowly(job) -> list:
        return [Started(7), 0.001, *spoken(*(f"{letter}" for letter in texts(job)[-1]))[1:]]

    with serving(slowly, num_slots=4, max_queue=64) as server, ThreadPoolExecutor(16) as threads:

        def ask(number: int) -> tuple[int, bytes]:
            raw = chat(f"nonce {number * 7919}", stream=number % 2 == 1)
            if number % 10 == 9:
                with socket.create_connection(("127.0.0.1", server.port)) as connected:
                    connected.sendall(raw)
                return number, b""
            return number, server.send(raw)

        for number, answer in threads.map(ask, range(60)):
            if number % 10 == 9:
                continue
            if number % 2 == 0:
                assert said(answer) == f"nonce {number * 7919}"
                continue
            frames = [json.loads(line[6:]) for line in answer.decode().splitlines() if line.startswith("data: {")]
            assert "".join(frame["choices"][0]["delta"].get("content", "") for frame in frames) == (
                f"nonce {number * 7919}"
            )
        server.engine.wait_until(lambda engine: engine.running == engine.waiting == 0)


def test_connections_are_kept_between_requests():
    with serving() as server, httpx.Client(base_url=server.url) as client:
        for _ in range(3):
            assert client.get("/health").status_code == 200
        assert len(server.http.server_state.connections) == 1


def test_threads_that_wait_are_no_part_of_this():
    """The server runs in one thread; what it does for a request is no thread of its own."""
    with serving(held, num_slots=8, max_queue=8) as server:
        before = threading.active_count()
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                connected = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                connected.sendall(chat())
            server.engine.wait_until(lambda engine: engine.running == 8)
            assert threading.active_count() == before
            server.engine.release()
            assert received(connected)
