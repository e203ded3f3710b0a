"""Tasks that other packages bring: the example of docs/adding_a_task.md, installed, is found, loaded and asked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval import tasks
from tests.eval_data_sets import write_pictures
from vlm.errors import VLMError

ROOT = Path(__file__).parent.parent


def example() -> dict[str, str]:
    """Return the files that the document shows, by their names."""
    text = (ROOT / "docs" / "adding_a_task.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```$", text, re.MULTILINE | re.DOTALL))


def test_the_documents_example_works_when_installed(tmp_path, monkeypatch):
    files = example()
    assert set(files) == {"pyproject.toml", "dials.py", "dials/questions.jsonl"}
    for name, content in files.items():
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_text(content, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--target", str(tmp_path / "site"), str(tmp_path / "package")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "dials" in tasks.names()
    assert set(tasks.names()) > {"chartqa", "ai2d"}

    task = tasks.find("dials")
    data = tmp_path / "package" / "dials"
    write_pictures(data, "images/1.png", "images/2.png")
    first, second = task.load(data)
    assert first.task == "dials"
    assert first.problem is second.problem is None
    assert second.fields == {"unit": "bar"}
    assert task.prompt(first).text() == (
        f"user:\n<image: images/1.png>{first.question}\nAnswer with a number.\n\nassistant:\n"
    )
    with pytest.raises(VLMError, match="Dials as JSON lines"):
        task.load(tmp_path)


def install(folder: Path, name: str, value: str, source: str) -> None:
    """Write what an installed package with one entry point leaves behind."""
    folder.mkdir()
    (folder / "bringer.py").write_text(source)
    info = folder / "bringer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bringer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sightline.tasks]\n{name} = {value}\n")


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("mine", "raise OSError('no')", r"task 'mine' of the package bringer cannot be loaded \(OSError\)"),
        ("mine", "", r"cannot be loaded \(AttributeError\); expected `bringer:TASK` to be a Task"),
        ("mine", "TASK = 3", r"task 'mine' of the package bringer is 3; expected a Task called 'mine'"),
        ("mine", "from eval.tasks.chartqa import TASK", r"is a Task called 'chartqa'; expected a Task called 'mine'"),
    ],
)
def test_what_is_no_task_is_said_to_be_that(tmp_path, monkeypatch, name, source, said):
    install(tmp_path / "site", name, "bringer:TASK", source)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "bringer", raising=False)
    assert name in tasks.names()
    with pytest.raises(VLMError, match=said) as caught:
        tasks.find(name)
    assert str(tmp_path) not in caught.value.message
    assert tasks.find("chartqa").title == "ChartQA", "others are not concerned"


def test_a_task_of_ours_cannot_be_replaced(tmp_path, monkeypatch):
    install(tmp_path / "site", "chartqa", "bringer:TASK", "TASK = 3")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert tasks.find("chartqa").title == "ChartQA"


@pytest.mark.parametrize("name", ["nothing", "", "ai2d ", None])
def test_a_task_that_is_not_there_is_named(name):
    with pytest.raises(VLMError, match=r"there is no task .*; expected one of ai2d, chartqa, docvqa"):
        tasks.find(name)
