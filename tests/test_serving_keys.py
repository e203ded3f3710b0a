"""Who may ask: keys on every route, whatever a client writes into its request line and headers."""

import asyncio
import hmac
import itertools
import json

import openai
import pytest
from openai import OpenAI

import vlm.serving.http.keys as keys_module
from tests.serving_engine import error_of, request, serving, status_of, wait_until
from vlm import VLMError
from vlm.loopback import is_loopback
from vlm.serving.app import create_app
from vlm.serving.http.access_log import AccessLog
from vlm.serving.http.keys import KeyFile
from vlm.serving.settings import ServerSettings

KEY, OTHER = "sk-0123456789abcdef", "a-second-key-for-another-team"
CHAT = json.dumps({"messages": [{"role": "user", "content": "?"}]}).encode()

ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/show"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("GET", "/api/version"),
]
ELSEWHERE = [
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
    ("POST", "//v1/chat/completions"),
    ("POST", "/V1/chat/completions"),
    ("POST", "/health/../v1/chat/completions"),
    ("POST", "/health/%2e%2e/v1/chat/completions"),
    ("POST", "/health;/v1/chat/completions"),
    ("POST", "/v1/chat/completions?x=/health"),
    ("POST", "/v1/chat/completions%3f/health"),
    ("GET", "/health/"),
    ("GET", "//health"),
    ("GET", "/v1/models/%2e%2e/%2e%2e/health"),
    ("GET", "http://localhost/health"),
    ("GET", "@localhost/health"),
]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# the first team\n{KEY}\n\n  {OTHER}  \n# the last line\n")
    return path


@pytest.fixture(scope="module")
def server(key_file):
    with serving(api_key_file=key_file) as server:
        yield server


def test_all_routes_are_on_the_list():
    """A route that is added must be added here, so that it is asked without a key."""
    application = create_app(None, ServerSettings())
    while not hasattr(application, "routes"):
        application = application.app
    found = {(method, route.path) for route in application.routes for method in route.methods}
    known = {(method, path.replace("/scripted", "/{name:path}")) for method, path in ROUTES}
    assert found - {("GET", "/health"), ("HEAD", "/health"), ("HEAD", "/ready"), ("HEAD", "/metrics")} == known


@pytest.mark.parametrize(("method", "path"), ROUTES + ELSEWHERE, ids=lambda part: part)
def test_without_the_right_key_every_path_says_401(server, method, path):
    """H1. Every way of naming the path, and every way of giving a key that is none."""
    before = len(server.engine.jobs)
    body = CHAT if method == "POST" else b""
    wrong = [
        {},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": "Bearer "},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY} {KEY}"},
        {"X-Api-Key": KEY},
        {"Host": "localhost/health?"},
        {"Host": "/health", "X-Forwarded-Prefix": "/health", "X-Original-URL": "/health"},
    ]
    # One connection a try would be slow; the last of these says that it is the last.
    for headers in wrong:
        answer = server.send(request(method, path, body, **headers))
        if headers.get("Host") and status_of(answer) == 400:
            continue
        assert status_of(answer) == 401, (headers, answer)
        assert b"www-authenticate: bearer" in answer.lower()
    assert len(server.engine.jobs) == before


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "NONSENSE"])
def test_other_methods_are_no_way_round(server, method):
    for path in ("/v1/chat/completions", "/metrics", "/nothing"):
        assert status_of(server.send(request(method, path))) == 401


def test_two_authorizations_are_none(server):
    raw = request("GET", "/v1/models", Authorization=f"Bearer {KEY}")
    assert status_of(server.send(raw)) == 200
    doubled = raw.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
    assert status_of(server.send(doubled)) == 401


def test_a_websocket_is_refused_with_and_without_a_key(server):
    upgrade = {
        "Connection": "Upgrade, close",
        "Upgrade": "websocket",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec_WebSocket_Version": "13",
    }
    assert status_of(server.send(request("GET", "/v1/chat/completions", **upgrade))) == 401
    answer = server.send(request("GET", "/v1/chat/completions", **upgrade, Authorization=f"Bearer {KEY}"))
    assert status_of(answer) == 405


def test_a_websocket_scope_is_closed_before_it_opens():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(AccessLog(None, None)({"type": "websocket", "path": "/health"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_health_alone_is_open(server):
    assert status_of(server.send(request("GET", "/health"))) == 200
    assert status_of(server.send(request("HEAD", "/health"))) == 200
    assert status_of(server.send(request("POST", "/health", b"{}"))) == 405


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_with_a_key_the_official_client_is_answered(server, key):
    client = OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
    reply = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "?"}])
    assert reply.choices[0].message.content == "re: ?"


def test_without_one_it_raises_its_own_class(server):
    client = OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert "wrong" not in caught.value.body["message"]


def test_a_body_without_a_key_is_not_read(server):
    """The refusal comes while the body, which never comes, is announced."""
    head = request("POST", "/v1/chat/completions", CHAT).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    answer = server.send(head)
    assert error_of(answer)["code"] == "invalid_api_key"


def test_keys_are_compared_as_hashes_and_all_of_them(key_file, monkeypatch):
    """H13: in constant time, without leaving at the first that is right."""
    compared, compare_digest = [], hmac.compare_digest

    def compare(a, b):
        compared.append((a, b))
        return compare_digest(a, b)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    keys = KeyFile(key_file)
    for key in (KEY.encode(), OTHER.encode(), b"wrong"):
        compared.clear()
        assert keys.allows(key) == (key != b"wrong")
        assert len(compared) == 2
        assert all(len(each) == 32 for each in itertools.chain(*compared))


def test_keys_are_not_kept(key_file):
    assert KEY not in repr(vars(KeyFile(key_file)))


def test_a_changed_file_takes_effect_and_a_broken_one_does_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(keys_module, "CHECK_EVERY_S", 0.0)
    path = tmp_path / "keys"
    path.write_text(KEY)
    keys = KeyFile(path)
    assert keys.allows(KEY.encode())
    path.write_text(OTHER)
    assert keys.allows(OTHER.encode())
    assert not keys.allows(KEY.encode())
    path.write_text("no key")
    assert keys.allows(OTHER.encode())
    path.unlink()
    assert keys.allows(OTHER.encode())
    assert OTHER not in caplog.text
    path.write_text(KEY)
    wait_until(lambda: keys.allows(KEY.encode()))


@pytest.mark.parametrize(
    "text",
    ["", "# only a comment\n", "with a space in it\n", "ключ-длинный-достаточно\n", "x" * 513],
    ids=["empty", "comment", "space", "letters", "long"],
)
def test_a_file_without_proper_keys_is_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(VLMError) as caught:
        KeyFile(path)
    assert caught.value.code == "invalid_request"
    assert "secrets.token_urlsafe" in caught.value.message
    assert text.strip() == "" or text.strip() not in caught.value.message


def test_short_and_long_keys_are_taken_and_short_ones_warned_of_once(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text("k\nshort\n")
    assert KeyFile(path).allows(b"k")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "short" not in caplog.text
    caplog.clear()
    path.write_text("x" * 512 + "\n" + "y" * 16)
    assert KeyFile(path).allows(b"x" * 512)
    assert caplog.text == ""


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    """As Windows' editors write it."""
    path = tmp_path / "keys"
    path.write_text(KEY, encoding="utf-8-sig")
    assert KeyFile(path).allows(KEY.encode())


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(VLMError, match="cannot be read"):
        KeyFile(tmp_path / "none")


# Without keys


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]:8000", "LOCALHOST", "127.9.9.9"]
)
def test_this_machine_is_asked_by_its_own_names(host):
    with serving(check_host=True) as server:
        assert status_of(server.send(request("GET", "/v1/models", Host=host))) == 200


def test_other_names_are_refused_without_keys():
    """DNS rebinding: a page whose name leads to 127.0.0.1 is of the same origin as the server to a browser."""
    with serving(check_host=True) as server:
        for host in ("evil.example", "localhost.evil.example", "192.168.0.7:8000", "127.0.0.1.nip.io", "", "x/?"):
            answer = server.send(request("GET", "/v1/models", Host=host))
            assert status_of(answer) in (400, 403), host
        assert error_of(server.send(request("GET", "/v1/models", Host="evil.example")))["code"] == "forbidden_host"


def test_no_answer_may_be_read_by_other_sites(server):
    for method in ("GET", "OPTIONS"):
        answer = server.send(
            request(method, "/v1/models", Origin="https://evil.example", Authorization=f"Bearer {KEY}")
        )
        assert b"access-control-allow" not in answer.lower()


def test_loopback_is_told_from_the_rest():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "", "127.0.0.1.evil")))
