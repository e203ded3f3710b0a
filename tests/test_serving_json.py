"""What becomes of a large body, and of what a JSON text may spell that no Unicode text holds."""

import json
import threading
import time
import tracemalloc

import pytest

from tests.serving_engine import request, serving, status_of
from vlm.serving.http import json_body
from vlm.serving.http.json_body import MAX_LONE_SURROGATES, parse
from vlm.serving.refusal import Refusal


def peak_of(body: bytes) -> float:
    """Return what parsing takes at most, in bytes a byte of `body`."""
    tracemalloc.start()
    try:
        parse(body)
        return tracemalloc.get_traced_memory()[1] / len(body)
    finally:
        tracemalloc.stop()


def test_an_emoji_beside_a_picture_makes_the_picture_no_larger():
    """As a whole, a text takes four bytes for each of its letters where one is an emoji."""
    picture = "aGVsbG8gd29ybGQh" * 200_000
    assert peak_of(json.dumps(["😀", picture], ensure_ascii=False).encode()) < 1.5


def test_a_long_text_with_an_emoji_is_in_memory_once():
    assert peak_of(json.dumps(["😀" + "x" * 3_000_000], ensure_ascii=False).encode()) < 5.5


def test_large_bodies_are_read_one_at_a_time(monkeypatch):
    now, most = [], []

    def slowly(body):
        now.append(body)
        most.append(len(now))
        time.sleep(0.1)
        now.remove(body)
        return parse(body)

    monkeypatch.setattr(json_body, "parse", slowly)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 100_000}]}).encode()
    statuses = []
    with serving(num_slots=4) as server:

        def send() -> None:
            statuses.append(status_of(server.send(request("POST", "/v1/chat/completions", body))))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (statuses, most) == ([200] * 4, [1] * 4)


@pytest.mark.parametrize(
    "text",
    [
        r"\ud800",
        r"a\udfffb",
        r"\ud83d\ude00 is whole",
        r"\ud83d\ud83d\ude00\ude00",
        r"\uD83D\uDE00\uDBFF",
        r"\\ud800 is none, \\\ud800 is one, \\\\ud800 is none",
        r"\n\\\ud800\\",
        "é😀\\ud800",
    ],
)
def test_lone_surrogates_are_told_from_pairs(text):
    """Python's own parser as oracle: it keeps them, and knows no other difference."""
    expected = json.loads(f'"{text}"').encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert parse(f'{{"{text}": ["{text}"]}}'.encode()) == {expected: [expected]}


@pytest.mark.parametrize(
    "body",
    [
        rb'"\ud8zz"',
        b'"\\ud800\0\0n"',
        rb'"\ud800" x',
        b'"' + rb"\ud800" * (MAX_LONE_SURROGATES + 1) + b'"',
        b'[1e400, "\\ud800"]',
    ],
    ids=["digits", "zeros", "more", "many", "number"],
)
def test_a_lone_surrogate_excuses_nothing_else(body):
    with pytest.raises(Refusal):
        parse(body)
