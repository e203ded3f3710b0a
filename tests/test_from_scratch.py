"""The walk-through from a text to a model that writes: its commands run, and a small decoder learns a text by heart."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlm import VLM, GenerationConfig, VLMError
from vlm.training.config import TrainConfig
from vlm.training.loop import Training
from vlm.training.settings import build
from vlm.training.tokenizer_training import character_tokenizer, train_bpe

DOCUMENT = (Path(__file__).parent.parent / "docs" / "from_scratch.md").read_text(encoding="utf-8")
VERSE = "The owl and the pussycat went to sea\nin a beautiful pea-green boät.\n"
SMALL = {"width": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 64, "max_context": 96}


def script() -> str:
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE))


@pytest.mark.slow
def test_every_command_of_the_walk_through_runs(tmp_path):
    small = script()
    for old, new in (
        ("/tmp/scratch", str(tmp_path)),
        ("steps = 400", "steps = 3"),
        ("topics.values())", "list(topics.values())[:20])"),
        ("max_new_tokens=80", "max_new_tokens=5"),
    ):
        assert old in small, old
        small = small.replace(old, new)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", small], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "wrote tokenizer: 1024 tokens and 256 special ones" in done.stdout
    assert "3 steps, loss " in done.stdout
    assert 'The "for" statement' in done.stdout
    assert (tmp_path / "run" / "model" / "tokenizer.model").exists()


def test_the_merges_are_those_that_the_walk_through_shows(capsys):
    (program,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    shown = re.findall(r"# (\[.*?\])", program)
    exec(program, {})  # the document is this repository's own
    assert capsys.readouterr().out.splitlines() == shown == ["['er', 'lo', 'low']", "['low', 'er']"]


@pytest.mark.parametrize("characters", [False, True])
def test_a_decoder_from_nothing_learns_a_verse_by_heart_and_writes_it(tmp_path, characters):
    made = character_tokenizer([VERSE]) if characters else train_bpe([VERSE * 9], 300)
    made.save(tmp_path / "tokenizer")
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8")
    settings = {
        "out": str(tmp_path / "run"),
        "model": {"decoder": SMALL, "tokenizer": str(tmp_path / "tokenizer")},
        "objective": {"name": "next_token"},
        "data": [{"path": str(tmp_path / "verse.txt")}],
        "steps": 120,
        "batch_size": 1,
        "optimizer": {"lr": 1e-2},
    }
    report = Training(build(TrainConfig, settings)).train()
    assert report.loss < 0.05
    model = VLM.from_pretrained(report.result)
    reply = model.complete("The owl", config=GenerationConfig(max_new_tokens=80))
    assert reply.finish_reason == "stop"
    assert "The owl" + reply.text == VERSE.strip()
    assert model.model.config.decoder.width == 32
    assert model.model.encoder is None


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"decoder": SMALL, "preset": "tiny"}, "expected either source"),
        ({"decoder": SMALL | {"widht": 3}}, "model.decoder.widht is no key; did you mean width?"),
        ({"decoder": SMALL | {"num_heads": 3}}, r"model.decoder: width 32 must split"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused(tmp_path, model, words):
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8")
    values = {"out": str(tmp_path / "run"), "model": model, "data": [{"path": str(tmp_path / "verse.txt")}]}
    with pytest.raises(VLMError, match=words):
        Training(build(TrainConfig, values))
