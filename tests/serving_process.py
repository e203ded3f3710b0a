"""`vlm serve` as a process of its own, for the tests that ask a real model."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx

KEY = "sk-0123456789abcdef"
SLOTS = 3


class ServerProcess:
    """A running `vlm serve`."""

    def __init__(self, folder: Path, directory: Path, *, slots: int = SLOTS, max_queue: int = 4):
        self.folder, self.log = folder, directory / "log"
        (directory / "keys").write_text(f"# for the tests\n{KEY}\n")
        options = [
            *("--model", folder, "--port", 0, "--json", "--api-key-file", directory / "keys", "--allow-urls"),
            *("--slots", slots, "--max-queue", max_queue, "--max-new-tokens", 3000, "--served-model-name", "tiny"),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vlm", "serve", *map(str, options)], stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout.readline().startswith(b"listening on http://127.0.0.1:")
        self.url = json.loads(self.process.stdout.readline())["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.headers = {"Authorization": f"Bearer {KEY}"}

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 240
        while httpx.get(f"{self.url}/ready", headers=self.headers).status_code != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def figure(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", headers=self.headers).text
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"sightline_{name} "))

    def worker_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(
            int(pid)
            for pid in children
            if b"vlm.serving.model_process.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
