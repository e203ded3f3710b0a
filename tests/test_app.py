"""The demo on the network: its launch profile, and what it refuses (faults G1 to G6), against the running server."""

import http.client
import importlib.util
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import httpx
import pytest

from tests.conversations import FOUR_TILES
from tests.demo_process import ANSWER, ROOT, Demo, running_demo
from tests.image_files import encode
from tests.listening import listening
from vlm.demo.guard import MAX_FILE_BYTES, MAX_FOLDER_BYTES

if importlib.util.find_spec("gradio") is None:
    pytest.skip("not run: gradio", allow_module_level=True)

# Gradio's server takes ten seconds to start.
pytestmark = pytest.mark.slow

CANARY = "canary-6f1d"
NAMES = itertools.count()


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "secret.txt").write_text(CANARY)
    with running_demo(folder) as demo:
        (demo.work / "empty" / "secret.txt").write_text(CANARY)
        (demo.work / "cache" / "link.txt").symlink_to(folder / "secret.txt")
        yield demo
    # Whatever the tests asked of it: it spoke to nobody else.
    assert demo.outside == []


@pytest.fixture(autouse=True)
def no_delay(demo):
    demo.delay(0)


def session() -> str:
    return f"session{next(NAMES)}"


def picture(path: str) -> list[dict]:
    return [{"image": {"path": path, "meta": {"_type": "gradio.FileData"}}, "caption": None}]


def ask(demo: Demo, question: str, pictures: list | None, name: str, length: int = 64) -> httpx.Response:
    return demo.join(demo.event("question", "submit"), [question, pictures, None, *SETTINGS[:-1], length], name)


SETTINGS = ["shipped model", "auto", 0, 64]


def raw(demo: Demo, method: str, target: str, **headers: str) -> tuple[int, dict, bytes]:
    """Send `target` as it is: no client tidies it up."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(demo.url).port, timeout=60)
    # What a client would not send: the library's own check is passed by.
    connection._validate_path = lambda _: None
    connection.request(method, target, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


# The profile


def test_the_page_is_served_as_the_profile_says(demo):
    config = demo.config
    assert config["analytics_enabled"] is False
    assert config["max_file_size"] == 10 * 2**20
    assert config["footer_links"] == []
    assert config.get("space_id") is None
    assert {each["api_visibility"] for each in config["dependencies"] if each["backend_fn"]} == {"private"}


def test_the_page_names_no_other_server(demo):
    page = demo.client.get("/")
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]+)\"", page.text)
    assert loaded
    assert [url for url in loaded if "//" in url] == []
    assert "fonts.googleapis" not in page.text + demo.client.get("/theme.css").text
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]


def test_a_question_is_answered_through_the_queue(demo):
    """The pictures of the other tests are refused for what they are, not because nothing works."""
    name = session()
    assert ask(demo, "?", picture(demo.upload("a.png", encode(FOUR_TILES, "PNG"))), name).status_code == 200
    said = list(demo.messages(name))
    assert [each["success"] for each in said if each["msg"] == "process_completed"] == [True]
    assert "confidence" in json.dumps(said)
    assert all(word in json.dumps(said) for word in ANSWER.split()[:2])


# G1: paths


def targets(demo: Demo) -> list[str]:
    secret = demo.work.parent / "secret.txt"
    files = [
        *(
            "/etc/passwd",
            "../../../../etc/passwd",
            "....//....//etc/passwd",
            "..\\..\\..\\etc\\passwd",
            "C:\\secret.txt",
        ),
        *(str(secret), str(demo.work / "empty" / "secret.txt"), "secret.txt", "./secret.txt", "~/.bashrc"),
        *(
            str(demo.work / "cache" / "link.txt"),
            f"{demo.work}/cache/../../secret.txt",
            f"{demo.work}/cache//..//secret.txt",
        ),
        *(str(ROOT / "app.py"), str(ROOT / "vlm" / "default_model" / "config.json"), "app.py", "file:///etc/passwd"),
        *(f"{secret}\0.png", "http://127.0.0.1:1/x", "https://example.com/", "//example.com/x", "\\\\host\\share"),
    ]
    prefixes = ["/gradio_api/file=", "/gradio_api/file/", "/gradio_api/proxy=", "/static/", "/assets/", "/theme/"]
    prefixes += ["/file=", "/custom_component/x/client/component/", "/gradio_api/custom_component/x/server/a/"]
    found = []
    for prefix, file in itertools.product(prefixes, files):
        found.append(prefix + quote(file, safe="/:.\\~"))
        found.append(prefix + "".join(f"%{byte:02x}" for byte in file.encode()))
    found += ["/GRADIO_API/file=/etc/passwd", "/gradio_api/FILE=/etc/passwd", "/gradio_api//file=/etc/passwd"]
    found += [
        "//gradio_api/file=/etc/passwd",
        "/gradio_api/./file=/etc/passwd",
        "/%67radio_api/file=%252fetc%252fpasswd",
    ]
    return found


def test_no_path_leads_out(demo):
    payloads = targets(demo)
    assert len(payloads) > 200
    for target in payloads:
        status, _, body = raw(demo, "GET", target.replace(" ", "%20"))
        assert status in (400, 403, 404, 405), target
        assert CANARY.encode() not in body
        assert b"root:" not in body
        assert len(body) < 200


def test_other_methods_on_these_paths_are_refused_too(demo):
    for target, method in itertools.product(targets(demo)[::23], ("POST", "PUT", "DELETE", "HEAD", "OPTIONS")):
        status, _, body = raw(demo, method, target)
        assert status in (400, 403, 404, 405, 411), (method, target)
        assert CANARY.encode() not in body


# G2: forged calls


def test_forged_pictures_are_refused_and_nothing_is_fetched(demo):
    with listening() as (address, heard):
        for path in (
            "/etc/passwd",
            address,
            "http://169.254.169.254/",
            str(ROOT / "app.py"),
            "data:image/png;base64,AA",
        ):
            answer = ask(demo, "?", picture(path), session())
            assert answer.status_code == 403
            assert answer.json() == {"detail": "a file was named that was not uploaded here"}
        for forged in ({"url": address}, {"path": None, "url": address}, {"url": "file:///etc/passwd"}):
            name = session()
            value = [{"image": forged | {"meta": {"_type": "gradio.FileData"}}, "caption": None}]
            if ask(demo, "?", value, name).status_code == 200:
                said = json.dumps(list(demo.messages(name)))
                assert "Add a picture first" in said or '"success": false' in said
                assert "root:" not in said
        own = demo.upload("a.png", encode(FOUR_TILES, "PNG"))
        value = picture(own)
        value[0]["image"]["url"] = address
        name = session()
        assert ask(demo, "?", value, name).status_code == 200
        assert all(each.get("success", True) for each in demo.messages(name))
        assert heard == []


@pytest.mark.parametrize(
    "values",
    [
        ["?", [], None, "/etc", "auto", 0, 64],
        ["?", [], None, "shipped model", "../x", 0, 64],
        ["?", [], None, "shipped model", "auto", 1e9, 64],
        ["?", [], None, "shipped model", "auto", 0, 10**9],
        ["x" * 5000, [], None, *SETTINGS],
        [{"a": 1}, "x", None, *SETTINGS],
        [],
        ["?"] * 50,
    ],
    ids=["model", "dtype", "temperature", "length", "question", "types", "none", "many"],
)
def test_forged_settings_end_in_a_refusal_without_a_trace(demo, values):
    if values and len(values) == 7 and values[1] == []:
        values[1] = picture(demo.upload("a.png", encode(FOUR_TILES, "PNG")))
    name = session()
    answer = demo.join(demo.event("question", "submit"), values, name)
    said = answer.text + json.dumps(list(demo.messages(name)) if answer.status_code == 200 else "")
    assert "Traceback" not in said
    assert str(ROOT) not in said
    assert "0x" not in said
    assert "confidence" not in said


def test_calls_that_wait_cannot_be_made_past_the_queue(demo):
    event = demo.event("question", "submit")
    body = {"data": ["?", [], None, *SETTINGS], "fn_index": event["id"], "session_hash": session()}
    assert demo.client.post("/gradio_api/run/predict", json=body).status_code == 404


# G3: what is uploaded comes back harmless


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        ("a.html", b"<script>alert(1)</script>"),
        ("a.xhtml", b"<script>alert(1)</script>"),
        ("a.js", b"alert(1)"),
        ("a.png.html", b"\x89PNG<script>alert(1)</script>"),
        ("a.png", b"<script>alert(1)</script>"),
        ("a", b"<script>alert(1)</script>"),
    ],
)
def test_uploads_come_back_as_downloads_or_pictures(demo, name, content):
    path = demo.upload(name, content)
    status, headers, body = raw(demo, "GET", f"/gradio_api/file={quote(path)}")
    assert (status, body) == (200, content)
    assert headers["content-disposition"].startswith("attachment") or headers["content-type"].startswith("image/png")
    assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in headers["content-security-policy"]


def test_ten_thousand_ranges_of_a_file_are_no_more_work_than_the_file(demo):
    """H3."""
    content = encode(FOUR_TILES, "PNG")
    path = demo.upload("a.png", content)
    ranges = "bytes=" + ",".join(f"{number}-{number}" for number in range(10_000))
    # Gradio by itself answers each of these with an error of the server.
    for asked in (ranges, "bytes=0-1,2-3", "bytes=\xb2-3", "bytes=" + "9" * 5000 + "-1", "bytes=0-" + "9" * 5000):
        status, _, body = raw(demo, "GET", f"/gradio_api/file={quote(path)}", Range=asked)
        assert (status, body) == (200, content), asked[:20]


# G4: other origins


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://127.0.0.1.evil.example"])
def test_other_origins_are_given_nothing(demo, origin):
    for method, path in (("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload"), ("GET", "/config")):
        answer = demo.client.request(method, path, headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") in (None, demo.url)
        assert answer.headers.get("access-control-allow-origin") != "*"
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = demo.client.options("/gradio_api/queue/join", headers=preflight)
    assert origin not in answer.headers.get("access-control-allow-origin", "")
    assert "*" not in answer.headers.get("access-control-allow-origin", "")


# G5: the queue


def test_a_full_queue_says_so_at_once_and_all_others_are_answered(demo):
    path = demo.upload("a.png", encode(FOUR_TILES, "PNG"))
    demo.delay(10)
    running = session()
    assert ask(demo, "first", picture(path), running, 8).status_code == 200
    stream = demo.messages(running)
    # Only when it runs has it left the queue.
    assert next(each for each in stream if each["msg"] == "process_starts")
    names = [session() for _ in range(63)]
    answers = [ask(demo, "?", picture(path), name, 8) for name in names]
    accepted = [name for name, answer in zip(names, answers, strict=True) if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert (len(accepted), len(refused)) == (32, 31)
    assert all("Queue is full" in answer.text for answer in refused)
    demo.delay(0)
    for name in [running, *accepted]:
        messages = list(stream) if name == running else list(demo.messages(name))
        completed = [each for each in messages if each["msg"] == "process_completed"]
        assert [each["success"] for each in completed] == [True]


def test_a_closed_tab_frees_its_place(demo):
    path = demo.upload("a.png", encode(FOUR_TILES, "PNG"))
    demo.delay(0.2)
    gone = session()
    ask(demo, "?", picture(path), gone)
    stream = demo.messages(gone)
    assert next(each for each in stream if each["msg"] == "process_generating")
    stream.close()
    # The tokens that nobody reads any more would take six minutes at this delay.
    demo.delay(8)
    name = session()
    ask(demo, "?", picture(path), name)
    waiting = demo.messages(name)
    for count, each in enumerate(waiting):
        if each["msg"] == "process_starts":
            break
        # At the latest every 15 seconds there is one.
        assert count < 20, "the place is still taken"
    demo.delay(0)
    assert [each["success"] for each in waiting if each["msg"] == "process_completed"] == [True]


# G6: the disk, and sizes


def test_a_file_too_large_is_refused(demo):
    content = b"x" * (10 * 2**20 + 1)
    answer = demo.client.post("/gradio_api/upload", files={"files": ("a.png", content)})
    assert answer.status_code == 413
    assert str(demo.work) not in answer.text


def test_equal_uploads_take_their_room_once(demo):
    content = encode(FOUR_TILES, "PNG")
    used = {demo.upload("same.png", content) for _ in range(20)}
    assert len(used) == 1


def test_nothing_is_left_in_the_working_folder(demo):
    assert [each.name for each in (demo.work / "empty").iterdir()] == ["secret.txt"]
    assert [each for each in (demo.work / "parts").iterdir() if each.is_file()] == []


@pytest.mark.full
def test_a_thousand_uploads_of_ten_megabytes_stay_within_the_room(demo):
    """G6. The last test: it leaves no room."""
    block, statuses = os.urandom(MAX_FILE_BYTES - 4), Counter()
    for number in range(1000):
        files = {"files": ("a.png", number.to_bytes(4) + block)}
        statuses[demo.client.post("/gradio_api/upload", files=files).status_code] += 1
    used = sum(path.stat().st_size for path in demo.work.rglob("*") if path.is_file())
    print(f"{dict(statuses)}, {used / 2**20:.0f} MB on the disk")
    assert set(statuses) == {200, 503}
    assert used <= MAX_FOLDER_BYTES + MAX_FILE_BYTES
