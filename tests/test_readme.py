"""The README and the documents are true: their commands run, their links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted((ROOT / "examples").glob("**/README.md")),
    ROOT / "vlm" / "default_model" / "README.md",
]
NOT_RUN_IN_FULL = re.compile(
    r"make (test|test-slow|test-full|demo|bench|train-default)\b|python app\.py|python -m (benchmarks|vlm\.training)"
)
"""Too long for a test or the test itself: only looked up. Each is run in full by other means."""


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (document, text) of each code block in `language`."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(path.name, found) for path in DOCUMENTS for found in fence.findall(path.read_text(encoding="utf-8"))]


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for _, block in blocks("sh") for line in block.splitlines()]
    return sorted({line for line in lines if line and not line.startswith("#")})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The checkout as it is, but for what commands leave in it: a run there would go on from one of other weights."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name != "runs":
            (folder / path.name).symlink_to(path)
    return folder


def run(command: list[str], folder: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_documents_runs(command, checkout):
    words = shlex.split(command)
    if NOT_RUN_IN_FULL.match(command):
        words = ["make", "-n", words[1]] if words[0] == "make" else [sys.executable, *words[1:3], "--help"]
    done = run(words, checkout)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("document", "program"), blocks("python"))
def test_every_python_block_of_the_documents_runs(document, program, checkout):
    done = run([sys.executable, "-c", program], checkout)
    assert done.returncode == 0, f"{document}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_a_wrong_command_would_be_noticed():
    assert run([sys.executable, "-m", "vlm", "no-such-command"]).returncode != 0
