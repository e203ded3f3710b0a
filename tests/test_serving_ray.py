"""Several readers behind one front, on a local Ray: right answers, and a picture's questions at one reader."""

import asyncio
import base64
import importlib.util
import json
import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.routing import Match

from tests.eval_models import picture, save_tiny_model
from tests.serving_engine import ScriptedEngine
from vlm import VLM, GenerationConfig
from vlm.serving.app import create_app
from vlm.serving.settings import ServerSettings

if importlib.util.find_spec("ray") is None or importlib.util.find_spec("grpc") is None:
    pytest.skip("not run: ray[serve]", allow_module_level=True)

# A cluster of half a dozen processes.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    import ray
    from ray import serve

    from deploy.ray_serve import Options, build

    folder = save_tiny_model(tmp_path_factory.mktemp("ray") / "model")
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": paths},
        # Else Ray's workers make way for whatever runs beside them, for minutes where that is much.
        _system_config={"worker_niceness": 0},
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(build(Options(model=str(folder), slots=2)))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield folder, client
    finally:
        serve.shutdown()
        ray.shutdown()


def about(number: int, text: str = "What is it?") -> list[dict]:
    url = "data:image/png;base64," + base64.b64encode(picture(number)).decode()
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]}
    ]


def test_questions_about_a_picture_go_to_one_reader_and_pictures_to_all(cluster):
    folder, client = cluster
    model = VLM.from_pretrained(folder, device="cpu")
    readers = {}
    for number in range(8):
        for text in ("What is it?", "Which?", "Why?"):
            messages = about(number, text)
            answer = client.post(CHAT, json={"messages": messages, "max_tokens": 4})
            expected = model.chat(messages, config=GenerationConfig(max_new_tokens=4))
            assert answer.json()["choices"][0]["message"]["content"] == expected.text
            readers.setdefault(number, set()).add(answer.headers["x-reader"])
        image = base64.b64encode(picture(number)).decode()
        asked = {"prompt": "?", "images": [image], "options": {"num_predict": 2}}
        readers[number].add(client.post("/api/generate", json=asked).headers["x-reader"])
    assert {len(found) for found in readers.values()} == {1}
    found = set.union(*readers.values())
    # Eight pictures all fall to one reader once in 128 times.
    for number in range(8, 40):
        if len(found) == 1:
            found.add(client.post(CHAT, json={"messages": about(number), "max_tokens": 1}).headers["x-reader"])
    assert len(found) == 2


def test_a_stream_arrives_in_pieces(cluster):
    _, client = cluster
    with client.stream("POST", CHAT, json={"messages": about(1), "max_tokens": 6, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(lines) > 3
    assert lines[-1] == "data: [DONE]"


def test_what_is_refused_by_a_reader_or_at_the_front_has_the_usual_form(cluster):
    _, client = cluster
    answer = client.get("/health", headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (200, ["mine"])
    assert client.post(CHAT, json={"messages": []}).status_code == 400
    assert client.options(CHAT).json()["error"]["code"] == "method_not_allowed"
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    # Without keys, as with `vlm serve`.
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    answer = client.post(CHAT, content=b"a" * (33 * 2**20), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_every_method_is_passed_on_so_that_a_reader_asks_for_the_key():
    from deploy.ray_serve import front

    (route,) = front.routes
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        scope = {"type": "http", "method": method, "path": "/v1/models", "root_path": "", "headers": []}
        assert route.matches(scope)[0] is Match.FULL


def test_the_key_of_a_picture_is_found_in_one_pass():
    from deploy.ray_serve import picture_key

    data = base64.b64encode(bytes(range(256)) * 4)
    keys = {picture_key(b'{"url": "data:;base64,' + data + b'"}'), picture_key(b'{"images": ["' + data + b'"]}')}
    assert len(keys) == 1
    assert keys != {picture_key(data[::-1])}
    assert picture_key(b'{"content": "Hello"}' * 1000) == ""
    escaped = data.replace(b"/", rb"\/")
    assert b"/" in data
    assert keys == {picture_key(b'{"url": "data:;base64,' + escaped + b'"}')}
    assert picture_key(json.dumps({"content": "图里有什么" * 20}).encode()) == ""
    # Tried from each character, this took ten times as long.
    assert picture_key((b"a" * 127 + b" ") * 100_000) == ""


def first_choices(keys: list[str], names: list[str]) -> dict[str, str]:
    """Return which of the readers with these names each key goes to."""
    from deploy.ray_serve import ByPicture

    replicas = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in names]

    def chosen(key: str) -> str:
        ranks = asyncio.run(ByPicture.choose_replicas(None, replicas, SimpleNamespace(args=[key])))
        assert sorted(replica.replica_id.unique_id for (replica,) in ranks) == sorted(names)
        return ranks[0][0].replica_id.unique_id

    return {key: chosen(key) for key in keys}


def test_when_a_reader_goes_only_its_pictures_move():
    keys = [f"{number:064x}" for number in range(200)]
    before = first_choices(keys, ["a", "b", "c", "d"])
    assert before == first_choices(keys, ["d", "b", "a", "c"])
    assert min(Counter(before.values()).values()) > 20
    after = first_choices(keys, ["a", "b", "d"])
    assert all(after[key] == reader for key, reader in before.items() if reader != "c")
    # Text goes anywhere.
    assert len({first_choices([""], ["a", "b", "c"])[""] for _ in range(50)}) == 3


def test_a_reader_passes_on_what_its_application_sends():
    from deploy.ray_serve import Reader

    async def asked() -> list[dict]:
        engine = ScriptedEngine()
        await engine.start()
        reader = SimpleNamespace(_app=create_app(engine, ServerSettings()), _name="r1")
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": CHAT}
        scope |= {"raw_path": CHAT.encode(), "query_string": b"", "headers": headers}
        return [message async for message in Reader.func_or_class.__call__(reader, "", scope, body)]

    start, *rest = asyncio.run(asked())
    assert (start["status"], dict(start["headers"])[b"x-reader"]) == (200, b"r1")
    assert b"re: " in b"".join(message["body"] for message in rest)
    assert len(rest) > 3
    assert not rest[-1].get("more_body")
