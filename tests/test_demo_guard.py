"""What stands before the demo page: what it lets pass, what it refuses, and how much of it."""

import asyncio
import json
from pathlib import Path

import pytest

from vlm.demo.guard import FILE_POLICY, MAX_CALL_BYTES, MAX_UPLOAD_BYTES, PAGE_POLICY, Guard


def ask(guard: Guard, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict, bytes]:
    """Return status, headers and body of the answer to one request."""
    sent, parts = [], [{"type": "http.request", "body": body, "more_body": False}]
    headers = {"content_length": str(len(body))} | headers
    listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items() if value]
    scope = {"type": "http", "method": method, "path": path, "headers": listed}

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each.get("body", b"") for each in sent)


async def headers_behind(scope, receive, send):
    """A server that tells which headers came."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b",".join(name for name, _ in scope["headers"])})


async def behind(scope, receive, send):
    """A server that gives back what it is sent."""
    body = (await receive())["body"] if scope["method"] == "POST" else b"served"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def cache(tmp_path) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "own.png").write_bytes(b"own")
    (tmp_path / "secret").write_text("canary")
    (cache / "link").symlink_to(tmp_path / "secret")
    (cache / "folder").symlink_to(tmp_path)
    return cache


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index-1.js", "/static/a/b.woff2", "/gradio_api/queue/data"])
def test_what_the_page_needs_passes_with_a_policy(cache, path):
    status, headers, body = ask(Guard(behind, folder=cache), "GET", path)
    assert (status, body) == (200, b"served")
    assert headers[b"content-security-policy"] == PAGE_POLICY
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_files_of_the_folder_pass_in_a_sandbox(cache):
    status, headers, _ = ask(Guard(behind, folder=cache), "GET", f"/gradio_api/file={cache}/own.png")
    assert status == 200
    assert headers[b"content-security-policy"] == FILE_POLICY


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file={cache}/link", "/gradio_api/file={cache}/folder/secret", "/gradio_api/file={cache}"),
        *("/gradio_api/file={cache}/../secret", "/gradio_api/file=own.png", "/gradio_api/file=", "/gradio_api/file=~"),
        *("/gradio_api/file={cache}/own.png\0", "/gradio_api/file=/etc/passwd", "/gradio_api/file=http://x/y"),
        *("/gradio_api/file=file:///etc/passwd", "/gradio_api/proxy=http://x/", "/gradio_api/file/etc/passwd"),
        *("/assets/../secret", "/static/..%2fsecret", "/custom_component/x", "/gradio_api/vibe-code/", "/monitoring"),
        *(
            "/gradio_api/deep_link",
            "/gradio_api/openapi.json",
            "/login",
            "/gradio_api/process_recording",
            "//etc/passwd",
        ),
        *("/gradio_api/dev/reload", "/svelte/x", "/gradio_api/run-history/records", "/gradio_api/call/ask/1"),
    ],
)
def test_everything_else_is_not_there(cache, path):
    guard = Guard(behind, folder=cache)
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        status, _, body = ask(guard, method, path.format(cache=cache))
        assert status == 404
        assert b"canary" not in body


def test_a_call_passes_as_it_was(cache):
    body = json.dumps({"data": [{"path": str(cache / "own.png"), "url": "x"}, {"path": None}], "fn_index": 3}).encode()
    guard = Guard(behind, folder=cache, functions={3})
    assert ask(guard, "POST", "/gradio_api/queue/join", body)[::2] == (200, body)


@pytest.mark.parametrize(
    "value",
    [
        {"path": "/etc/passwd"},
        {"path": "http://169.254.169.254/"},
        {"path": "https://example.com/a.png"},
        {"path": "data:image/png;base64,AAAA"},
        {"path": ""},
        {"path": "own.png"},
        {"path": "{cache}/link"},
        {"path": "{cache}/../secret"},
        [[{"image": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}]],
        {"a": {"b": [0, {"c": {"path": "file:///etc/passwd"}}]}},
    ],
)
def test_a_call_that_names_another_file_is_refused(cache, value):
    body = json.dumps({"data": [value]}).replace("{cache}", str(cache)).encode()
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        assert ask(Guard(behind, folder=cache), "POST", path, body)[0] == 403


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/gradio_api/queue/join", b"{", {}, 400),
        ("/gradio_api/queue/join", b"[" * 100_000, {}, 400),
        ("/gradio_api/queue/join", b"\xff\xfe\xff", {}, 400),
        ("/gradio_api/queue/join", b'{"fn_index": 3, "data": [NaN]}', {}, 400),
        ("/gradio_api/run/predict", b'{"fn_index": 3, "data": [[-Infinity]]}', {}, 400),
        ("/gradio_api/cancel", b'{"fn_index": 3, "data": {"a": 1e400}}', {}, 400),
        ("/gradio_api/queue/join", b"{}", {"content_length": str(MAX_CALL_BYTES + 1)}, 413),
        ("/gradio_api/queue/join", b"{}", {"content_length": ""}, 411),
        ("/gradio_api/queue/join", b"{}", {"content_length": "-1"}, 411),
        ("/gradio_api/upload", b"x", {"content_length": str(MAX_UPLOAD_BYTES + 1)}, 413),
        ("/gradio_api/upload", b"x", {"content_length": "", "transfer_encoding": "chunked"}, 411),
        ("/gradio_api/upload", b"x", {}, 200),
    ],
)
def test_bodies_are_bounded(cache, path, body, headers, status):
    assert ask(Guard(behind, folder=cache), "POST", path, body, **headers)[0] == status


@pytest.mark.parametrize("index", [99, -1, None, "3", 3.0, True, [3]])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict"])
def test_functions_that_the_page_has_not_are_not_called(cache, path, index):
    guard = Guard(behind, folder=cache, functions={1, 3})
    assert ask(guard, "POST", path, json.dumps({"fn_index": 3}).encode())[0] == 200
    for call in ({"fn_index": index}, {}, [], None):
        assert ask(guard, "POST", path, json.dumps(call).encode())[0] == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("127.0.0.1", 200),
        ("[::1]:7860", 200),
        ("evil.example:7860", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_page_for_this_machine_is_asked_by_its_name(cache, host, status):
    """DNS rebinding: to a browser, a page whose name leads here is of this origin."""
    guard = Guard(behind, folder=cache, check_host=True)
    assert ask(guard, "GET", "/config", host=host)[0] == status
    assert ask(guard, "POST", "/gradio_api/upload", b"x", host=host)[0] == status
    assert ask(Guard(behind, folder=cache), "GET", "/config", host=host)[0] == 200


@pytest.mark.parametrize(
    ("origin", "headers", "status"),
    [
        ("", {}, 200),
        ("http://localhost:7860", {}, 200),
        ("HTTP://LocalHost:7860", {}, 200),
        ("https://demo.example", {"x_forwarded_host": "demo.example"}, 200),
        ("http://localhost:7861", {}, 403),
        ("http://evil.example", {}, 403),
        ("http://evil.example", {"x_forwarded_host": "demo.example"}, 403),
        ("null", {}, 403),
        ("null", {"x_forwarded_host": ""}, 403),
    ],
)
def test_pages_of_other_sites_send_nothing(cache, origin, headers, status):
    """A browser sends a form of any site without asking."""
    guard = Guard(behind, folder=cache, check_host=True)
    answer = ask(guard, "POST", "/gradio_api/upload", b"x", host="localhost:7860", origin=origin, **headers)
    assert answer[0] == status


def test_uploads_stop_when_the_room_is_used_up_and_go_on_when_there_is_some(cache):
    guard = Guard(behind, folder=cache, max_folder_bytes=2000)
    assert ask(guard, "POST", "/gradio_api/upload", b"x")[0] == 200
    (cache / "large").write_bytes(b"x" * 20_000)
    status, _, body = ask(guard, "POST", "/gradio_api/upload", b"x")
    assert status == 503
    assert json.loads(body)["detail"] == "the room for pictures is used up; try again in an hour"
    (cache / "large").unlink()
    assert ask(guard, "POST", "/gradio_api/upload", b"x")[0] == 200


def test_web_sockets_are_closed(cache):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(behind, folder=cache)({"type": "websocket", "path": "/"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_of_parts_of_a_file_the_server_behind_never_hears(cache):
    """H3."""
    guard = Guard(headers_behind, folder=cache)
    for asked in ("bytes=0-1", "bytes=" + ",".join(["0-0"] * 10_000), "bytes=" + "9" * 5000 + "-1"):
        path = f"/gradio_api/file={cache / 'own.png'}"
        assert ask(guard, "GET", path, range=asked, accept="*/*")[::2] == (200, b"content-length,accept")
