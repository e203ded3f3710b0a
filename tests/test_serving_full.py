"""The server at the stated sizes, by `make test-full`: large bodies, many clients for minutes. Figures are printed."""

import base64
import contextlib
import gzip
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.eval_models import picture, save_tiny_model
from tests.serving_engine import request, status_of
from tests.serving_process import ServerProcess
from vlm import VLM, GenerationConfig

pytestmark = pytest.mark.full

MEGABYTE = 2**20
LIMIT = 32 * MEGABYTE
CLIENTS = 64
LOAD_S = float(os.environ.get("SIGHTLINE_LOAD_S", "600"))
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serve")
    server = ServerProcess(save_tiny_model(directory / "model"), directory, slots=8, max_queue=CLIENTS)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def resident_bytes(server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


def num_files(server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


class Watch:
    """Polls /health, and the memory of the server, while a block runs."""

    def __init__(self, server):
        self._server, self._stop = server, threading.Event()
        self.times: list[float] = []
        self.before = self.most_bytes = resident_bytes(server)

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        times = sorted(self.times)
        p99 = times[int(len(times) * 0.99)] * 1000
        grown = (self.most_bytes - self.before) / MEGABYTE
        print(f"/health: {len(times)} polls, p99 {p99:.0f} ms; memory grew by {grown:.0f} MB at most")

    def _poll(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=60) as client:
            while not self.times or not self._stop.wait(0.02):
                began = time.perf_counter()
                assert client.get("/health").status_code == 200
                self.times.append(time.perf_counter() - began)
                self.most_bytes = max(self.most_bytes, resident_bytes(self._server))


def send(server, head: bytes, blocks) -> int | None:
    """Return the status that is said to a body in blocks; None where the connection was cut before one was."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connected:
        with contextlib.suppress(OSError):
            connected.sendall(head)
            for block in blocks:
                connected.sendall(block)
        with contextlib.suppress(OSError):
            if answer := connected.recv(65536):
                return status_of(answer)
    return None


def announced(server, num_bytes: int, **named) -> bytes:
    head = request("POST", CHAT, b"x", **server.headers, **named)
    return head.replace(b"Content-Length: 1\r\n", b"Content-Length: %d\r\n" % num_bytes)[:-1]


@pytest.mark.parametrize("way", ["announced", "chunks"])
def test_a_body_of_a_gigabyte_is_refused_in_little_memory(server, way):
    """H2."""
    block = b"a" * MEGABYTE
    with Watch(server) as watch:
        if way == "announced":
            status = send(server, announced(server, 2**30), (block for _ in range(1024)))
        else:
            head = request("POST", CHAT, Content_Type="application/json", Transfer_Encoding="chunked", **server.headers)
            status = send(server, head, (b"100000\r\n" + block + b"\r\n" for _ in range(1024)))
    assert status in (413, None)
    assert watch.most_bytes - watch.before < 2 * LIMIT


def test_a_gzip_bomb_is_not_opened(server):
    body = gzip.compress(b"[" * 500 * MEGABYTE)
    with Watch(server) as watch:
        status = send(server, announced(server, len(body), Content_Encoding="gzip"), [body])
    assert status == 415
    assert watch.most_bytes - watch.before < LIMIT


@pytest.mark.parametrize("unit", [b"[", b"[],", b'{"a":0},', b'"a",', b"0,"], ids=repr)
def test_the_largest_body_of_small_values_holds_up_nobody(server, unit):
    """T5: as large as a body may be, five at once."""
    body = b'{"messages": [' + unit * ((LIMIT - 100) // len(unit)) + b"0]}"
    with Watch(server) as watch, ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(send, server, announced(server, len(body)), [body]) for _ in range(5)]
        assert {answer.result() for answer in answers} == {400}
    # What five clients sent, twice at most while it is put together.
    assert watch.most_bytes - watch.before < 10 * LIMIT + 64 * MEGABYTE


def test_64_clients_are_answered_as_if_each_were_alone(server):
    """H11: text, one picture, two pictures; bombs, and clients that leave."""
    model = VLM.from_pretrained(server.folder, device="cpu")
    asked = [_conversation(number) for number in range(60)]
    config = GenerationConfig(max_new_tokens=12)
    expected = [model.chat(messages, config=config).text for messages in asked]
    outcomes, wrong = Counter(), []
    files, deadline = num_files(server), time.monotonic() + LOAD_S

    def client(seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=server.url, headers=server.headers, timeout=600) as http:
            while time.monotonic() < deadline:
                number, dice = rng.randrange(len(asked)), rng.random()
                body = {"messages": asked[number], "max_tokens": 12}
                if dice < 0.05:
                    outcomes[http.post(CHAT, json=_broken(rng)).status_code, "broken"] += 1
                elif dice < 0.1:
                    _leave(server, body)
                    outcomes["left"] += 1
                else:
                    response = http.post(CHAT, json=body)
                    outcomes[response.status_code] += 1
                    if response.status_code == 200:
                        said = response.json()["choices"][0]["message"]["content"]
                        if said != expected[number]:
                            wrong.append((number, said))

    with Watch(server), ThreadPoolExecutor(CLIENTS) as threads:
        for future in [threads.submit(client, seed) for seed in range(CLIENTS)]:
            future.result()
    print(f"{LOAD_S:.0f} s of {CLIENTS} clients: {dict(outcomes)}; {len(wrong)} wrong answers")
    time.sleep(2)
    assert wrong == []
    assert set(outcomes) <= {200, 429, (400, "broken"), (429, "broken"), "left"}
    assert server.figure("running") == server.figure("waiting") == 0
    assert num_files(server) <= files + 5


def _conversation(number: int) -> list[dict]:
    """Return a conversation of its own, about as many pictures as `number` leaves when it is divided by three."""
    pictures = [base64.b64encode(picture(7 * number + place)).decode() for place in range(number % 3)]
    images = [{"type": "image_url", "image_url": {"url": f"data:;base64,{each}"}} for each in pictures]
    return [{"role": "user", "content": [*images, {"type": "text", "text": f"nonce {number * 7919}"}]}]


def _broken(rng: random.Random) -> dict:
    content = bytearray(picture(rng.randrange(50)))
    content[16:24] = b"\x00\x01\x00\x00" * 2  # 65536 x 65536 pixels
    url = "data:;base64," + base64.b64encode(content).decode()
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def _leave(server, body: dict) -> None:
    raw = request("POST", CHAT, json.dumps(body).encode(), **server.headers)
    with socket.create_connection(("127.0.0.1", server.port)) as connected:
        connected.sendall(raw)
        time.sleep(0.05)
