"""What a run shows while it goes on, and that no second one writes over it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import random_model
from tests.training_rows import draw_pictures, write_jsonl
from vlm import VLM, Tokenizer, VLMError, preset
from vlm.training.config import TrainConfig
from vlm.training.journal import draw_curves, read_lines
from vlm.training.loop import Training
from vlm.training.settings import build
from vlm.training.speed import NUM_COUNTED, Speed


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reporting")
    VLM(random_model(preset("tiny")), Tokenizer.bytes_only()).save_pretrained(folder / "model")
    draw_pictures(folder, {"a.png": 77})
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ab"}]
    write_jsonl(folder / "talk.jsonl", [{"messages": talk}] * 4)
    return folder


def settings(place: Path, out: Path, **changes) -> TrainConfig:
    values = {
        "out": str(out),
        "model": {"source": str(place / "model")},
        "data": [{"path": str(place / "talk.jsonl")}],
        "optimizer": {"lr": 1e-2},
        "steps": 4,
        "batch_size": 2,
    }
    return build(TrainConfig, values | changes)


def test_questions_are_answered_now_and_then_and_change_nothing(place, tmp_path):
    asked = {"every": 3, "max_new_tokens": 4}
    asked["questions"] = [{"text": "q"}, {"text": "what?", "image": str(place / "a.png")}]
    Training(settings(place, tmp_path / "plain")).train()
    training = Training(settings(place, tmp_path / "asked", samples=asked))
    training.train()
    rows = read_lines(tmp_path / "asked" / "samples.jsonl")
    assert [(row["step"], row["question"]) for row in rows] == [(3, "q"), (3, "what?"), (4, "q"), (4, "what?")]
    expected = VLM.from_pretrained(tmp_path / "asked" / "model", device="cpu")
    replies = [training.vlm.chat([{"role": "user", "content": "q"}]), expected.chat([{"role": "user", "content": "q"}])]
    assert {reply.text[: len(rows[2]["reply"])] for reply in replies} == {rows[2]["reply"]}
    logs = [read_lines(tmp_path / name / "log.jsonl") for name in ("plain", "asked")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def test_a_picture_that_cannot_be_asked_about_is_refused_before_the_first_step(place, tmp_path):
    asked = {"questions": [{"text": "?", "image": str(tmp_path / "none.png")}]}
    with pytest.raises(VLMError):
        Training(settings(place, tmp_path / "run", samples=asked))


def test_tensorboard_shows_what_the_log_says(place, tmp_path):
    pytest.importorskip("tensorboard", reason="not run: tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Training(settings(place, tmp_path / "run", tensorboard=True)).train()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in read_lines(tmp_path / "run" / "log.jsonl")
    ]
    assert {"lr", "grad_norm", "tokens"} <= set(events.Tags()["scalars"])


def test_a_missing_tensorboard_is_named_before_the_first_step(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(VLMError, match="needs tensorboard, which is not installed"):
        Training(settings(place, tmp_path / "run", tensorboard=True))


def test_rewards_are_drawn_where_there_are_any(tmp_path):
    pytest.importorskip("matplotlib", reason="not run: matplotlib")
    from PIL import Image

    row = {"step": 1, "loss": 1.0, "grad_norm": 1.0, "lr": 0.1}
    sizes = []
    for more in ({}, {"reward": 0.5}):
        write_jsonl(tmp_path / "log.jsonl", [row | more, row | more | {"step": 2}])
        sizes.append(Image.open(draw_curves(tmp_path)).size[0])
    assert sizes[1] == pytest.approx(sizes[0] * 4 / 3, rel=0.01)


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("taken", flush=True)
    except OSError:
        print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_takes_one_run_at_a_time(place, tmp_path):
    """Held by another process, whose end lets go of it however it comes."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / "lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "taken\n"
    with pytest.raises(VLMError, match="another run is writing to 'run'; wait for it or stop it"):
        Training(settings(place, tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock"]
    other.kill()
    other.wait()
    training = Training(settings(place, tmp_path / "run"))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stdout == "held\n"
    training.lock.close()


def test_operations_are_those_of_the_products(monkeypatch):
    layer, x = nn.Linear(64, 32, bias=False), torch.randn(10, 64, requires_grad=True)
    monkeypatch.setattr("vlm.training.speed.measured_peak", lambda device, dtype: 1e6)
    speed = Speed(torch.device("cpu"), torch.float32)
    for _ in range(NUM_COUNTED + 2):
        with speed.counting(num_tokens=10):
            layer(x).sum().backward()
    # Forward, and two products as large on the way back; for each of ten tokens.
    assert speed.share(tokens_per_s=100) == pytest.approx(100 * 3 * 2 * 64 * 32 / 1e6)


def test_a_terminal_is_told_the_share_of_the_peak(place, tmp_path, monkeypatch, capsys):
    from functools import partial

    import tqdm

    monkeypatch.setattr("vlm.training.loop.tqdm", lambda **settings: tqdm.tqdm(**settings | {"disable": False}))
    monkeypatch.setattr("vlm.training.speed.measured_peak", partial(lambda device, dtype: 1e9))
    Training(settings(place, tmp_path / "run", samples={"questions": [{"text": "q"}], "max_new_tokens": 2})).train()
    shown = capsys.readouterr()
    assert "4/4" in shown.err
    assert all(word in shown.err for word in ("loss ", "lr ", " tokens/s, ", "% of peak"))
    assert "step 4: q → " in shown.out + shown.err
    assert json.loads((tmp_path / "run" / "samples.jsonl").read_text())["step"] == 4
