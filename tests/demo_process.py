"""Starts the demo's server for tests, and speaks its queue's protocol as its page does."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

ROOT = Path(__file__).parent.parent
ANSWER = 'about 495 <img src=x onerror="window.harmed=1"> **é**'
"""What the model writes, unless a test wants something else."""
LONGEST_WAIT_S = 120


class Demo(NamedTuple):
    """A demo that runs."""

    url: str
    work: Path
    controls: Path
    process: subprocess.Popen
    client: httpx.Client
    config: dict
    """What the page is made of."""

    def delay(self, seconds: float) -> None:
        """Let the model wait so long before each token."""
        self._control("delay", str(seconds))

    def answer(self, text: str) -> None:
        """Let the model write this from now on; with a | in it, it is one that says it can write tables."""
        self._control("answer", text)

    def _control(self, name: str, text: str) -> None:
        (self.controls / "new").write_text(text)
        os.replace(self.controls / "new", self.controls / name)

    @property
    def outside(self) -> list[str]:
        """Connections that were attempted to anything but this machine."""
        file = self.controls / "outside"
        return file.read_text().splitlines() if file.exists() else []

    def event(self, element: str, name: str) -> dict:
        """Return the first dependency that `name` of the component with this element id (or label) triggers."""
        ids = [
            each["id"]
            for each in self.config["components"]
            if element in (each["props"].get("elem_id"), each["props"].get("label"), each["props"].get("value"))
        ]
        return next(each for each in self.config["dependencies"] if any([i, name] in each["targets"] for i in ids))

    def join(self, event: dict, data: list, session: str) -> httpx.Response:
        """Put a call into the queue."""
        body = {"data": data, "fn_index": event["id"], "session_hash": session, "event_data": None, "trigger_id": None}
        return self.client.post("/gradio_api/queue/join", json=body)

    def messages(self, session: str) -> Iterator[dict]:
        """Yield what the queue tells a session, until all of its calls are done."""
        deadline = time.monotonic() + LONGEST_WAIT_S
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
            for line in answer.iter_lines():
                assert time.monotonic() < deadline
                if line.startswith("data: "):
                    yield json.loads(line[6:])

    def upload(self, name: str, content: bytes) -> str:
        """Upload a file and return its path."""
        answer = self.client.post("/gradio_api/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return answer.json()[0]


@contextmanager
def running_demo(folder: Path) -> Iterator[Demo]:
    """Start the demo with a scripted tiny model, and end it."""
    work, controls = folder / "work", folder / "controls"
    work.mkdir()
    controls.mkdir()
    (controls / "delay").write_text("0")
    (controls / "answer").write_text(ANSWER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.demo_server", str(work), str(port), str(controls)]
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=LONGEST_WAIT_S) as client:
            yield Demo(url, work, controls, process, client, _config(client, process, folder / "log"))
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def _config(client: httpx.Client, process: subprocess.Popen, log: Path) -> dict:
    """Return what the page is made of, once it is served."""
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            answer = client.get("/config")
            if answer.status_code == 200:
                return answer.json()
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError("the demo did not start: " + log.read_text()[-3000:])
