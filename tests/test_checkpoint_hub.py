"""Names instead of folders: a small server that speaks the Hub's API, and what is in the cache without a network."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.checkpoint_models import assert_same, random_model, refusal, text_config
from vlm.checkpoint import load_model, resolve, save_model

NAME = "owner/name"
COMMIT = "c" * 40
MODEL = random_model(text_config())


class Hub(ThreadingHTTPServer):
    """Repositories on this machine; `asked` lists the files whose content was asked for."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[str] = []
        self.refuse: tuple[int, str] | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if self.server.refuse:
            status, code = self.server.refuse
            self._answer(status, b"{}", {"X-Error-Code": code})
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            listed = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in self.server.files.items()]
            self._answer(200, json.dumps(listed).encode())
        elif re.fullmatch(rf"/api/models/{NAME}(/revision/(main|{COMMIT}))?", path):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._answer(200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif match := re.fullmatch(rf"/{NAME}/resolve/{COMMIT}/(.+)", path):
            if self.command == "GET":
                self.server.asked.append(match[1])
            self._answer(200, self.server.files[match[1]], {"X-Repo-Commit": COMMIT})
        elif path.startswith(f"/api/models/{NAME}/revision/"):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (
            {"ETag": f'"{_oid(content)}"', "Content-Length": str(len(content))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, bytes]:
    """The files of a repository like the published ones: both formats, one under original/."""
    folder = tmp_path_factory.mktemp("published")
    save_model(MODEL, folder / "hf", max_shard_bytes=1e5)
    save_model(MODEL, folder / "meta", format="meta")
    files = {path.name: path.read_bytes() for path in (folder / "hf").iterdir()}
    files |= {f"original/{path.name}": path.read_bytes() for path in (folder / "meta").iterdir()}
    return files | {
        "tokenizer.json": b"{}",
        "original/tokenizer.model": b"x",
        "README.md": b"x",
        "onnx/model.onnx": b"x",
    }


@pytest.fixture
def hub(published, monkeypatch, tmp_path):
    server = Hub(dict(published))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield server
    server.shutdown()
    server.server_close()


def test_a_folder_is_itself(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_a_name_is_downloaded_with_one_set_of_weights(hub):
    folder = resolve(NAME)
    assert_same(load_model(folder), MODEL)
    assert sorted(name for name in hub.asked if not name.endswith(".json")) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "original/tokenizer.model",
    ]
    assert (folder / "tokenizer.json").exists()
    assert (folder / "model-00001-of-00003.safetensors").is_symlink()
    hub.asked.clear()
    assert resolve(NAME) == folder
    assert not hub.asked


def test_a_repository_of_metas_files_is_downloaded_too(hub):
    hub.files = {name: content for name, content in hub.files.items() if name.startswith("original/")}
    folder = resolve(NAME)
    assert folder.name == "original"
    assert_same(load_model(folder), MODEL)


def test_without_a_network_the_cache_serves(hub, monkeypatch):
    folder = resolve(NAME)
    hub.shutdown()
    hub.server_close()
    assert resolve(NAME) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(NAME) == folder
    assert_same(load_model(resolve(NAME)), MODEL)
    assert "cannot be reached" in refusal(resolve, "owner/other").message


def test_half_a_download_is_no_model(hub, monkeypatch):
    folder = resolve(NAME)
    (folder / "model-00002-of-00003.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "no whole copy" in refusal(resolve, NAME).message


def test_refusals_of_the_hub_say_what_to_do(hub):
    assert "no such repository" in refusal(resolve, "owner/other").message
    assert "no revision 'v9'" in refusal(resolve, NAME, revision="v9").message
    hub.refuse = (403, "GatedRepo")
    assert "accept its licence" in refusal(resolve, NAME).message
    hub.refuse = (418, "")
    assert "the Hub answered 418" in refusal(resolve, NAME).message


def test_what_is_neither_folder_nor_name_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(resolve, tmp_path / "file").message
    for source in (tmp_path / "nothing", "a/b/c", "../up", "name only", "", "https://example.com/x", "owner/../name"):
        assert "there is no folder" in refusal(resolve, source).message


def test_a_folder_that_may_not_be_entered_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.checkpoint.hub.os.access", lambda path, mode: False)
    assert "may not be read" in refusal(resolve, tmp_path).message


@pytest.mark.full
def test_the_environments_settings_are_followed(published, tmp_path):
    """As users set them: HF_ENDPOINT, then HF_HUB_OFFLINE, each in a fresh process."""
    server = Hub(published)
    code = f"import vlm.checkpoint as c; print(len(c.load_model(c.resolve({NAME!r})).state_dict()))"
    environment = os.environ | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    for settings in ({"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}, {"HF_HUB_OFFLINE": "1"}):
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment | settings, capture_output=True, text=True, check=True
        )
        assert found.stdout.split() == [str(len(MODEL.state_dict()))]
        server.shutdown()
