"""`vlm train`: what it prints and writes, and that the documentation's first commands work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.training_runs import ROOT, TOML, write_model_and_talk
from vlm.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_model_and_talk(tmp_path_factory.mktemp("training"))


def test_the_command_trains_an_adapter_that_ask_takes(place, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(TOML.format(out=tmp_path / "run", place=place))
    done = CliRunner().invoke(main, ["train", str(config), "steps=8", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["steps"], report["poison"]) == (8, 1)
    arguments = ["ask", str(place / "a.png"), "say", "--model", str(place / "model"), "--max-new-tokens", "4"]
    plain, adapted = (CliRunner().invoke(main, [*arguments, *more]) for more in ((), ("--adapter", report["result"])))
    assert adapted.exit_code == plain.exit_code == 0
    assert adapted.stdout != plain.stdout
    again = CliRunner().invoke(main, ["train", str(config), "steps=8"])
    assert "going on after step 8 of 8" in again.stdout
    wrong = CliRunner().invoke(main, ["train", str(config), "stepz=8", "--json"])
    assert wrong.exit_code == 1
    assert "did you mean steps?" in json.loads(wrong.stdout.splitlines()[-1])["error"]["message"]


def test_the_first_commands_of_the_documentation_work(tmp_path):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    script = text.split("```bash\n")[1].split("```")[0]
    for old, new in (("/tmp/first", str(tmp_path)), ("steps = 40", "steps = 2")):
        assert old in script
        script = script.replace(old, new)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "wrote run/adapter" in done.stdout
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "run" / "adapter").iterdir()
    }
    merging = text.split("```py\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", merging], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "merged" / "config.json").exists()
