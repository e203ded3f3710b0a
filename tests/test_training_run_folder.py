"""What a run's folder holds on to: the settings and the data that the run was begun with."""

import json
import logging
from pathlib import Path

import pytest

from tests.training_rows import write_jsonl
from tests.training_runs import settings, write_model_and_talk
from vlm import VLMError
from vlm.training.data import digest
from vlm.training.data.digest import digest_files
from vlm.training.loop import Training
from vlm.training.setup import num_steps


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_model_and_talk(tmp_path_factory.mktemp("training"))


def talk(replies: str) -> list[dict]:
    user = {"role": "user", "content": "say"}
    return [{"messages": [user, {"role": "assistant", "content": reply}]} for reply in replies]


def data_of(path: Path, **more) -> dict:
    return {"data": [{"path": str(path), **more}], "steps": 2, "batch_size": 2}


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


# Settings


def test_settings_that_are_refused_are_not_those_of_the_run(place, tmp_path):
    wrong = {"optimizer": {"groups": [{"match": "visio.*"}]}}
    with pytest.raises(VLMError, match=r"visio\.\*"):
        Training(settings(place, tmp_path / "run", **wrong))
    assert not (tmp_path / "run" / "settings.json").exists()
    Training(settings(place, tmp_path / "run"))
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert kept["num_samples"] == [9, 3]
    assert kept["samples"]["every"] == 100


def test_more_epochs_than_can_be_counted_are_refused(place, tmp_path):
    config = settings(place, tmp_path / "run", steps=None, epochs=1e300)
    with pytest.raises(VLMError, match=r"epochs is 1e\+300, which takes 3e\+300 steps"):
        num_steps(config, Training(settings(place, tmp_path / "run")).data)


# Data


def test_a_run_is_not_gone_on_with_on_other_data(place, tmp_path):
    path = write_jsonl(tmp_path / "talk.jsonl", talk("abc"))
    Training(settings(place, tmp_path / "run", **data_of(path))).train()
    edit(path, '"b"', '"d"')
    with pytest.raises(
        VLMError, match=r"'talk.jsonl' has changed since the run in 'run' was begun: its digest"
    ) as caught:
        Training(settings(place, tmp_path / "run", **data_of(path)))
    assert caught.value.code == "invalid_request"
    assert len(caught.value.report) <= 300
    edit(path, '"d"', '"b"')
    assert Training(settings(place, tmp_path / "run", **data_of(path))).num_done == 2


def forget_data(run: Path) -> None:
    """Make the folder that of a run of an earlier version."""
    kept = json.loads((run / "settings.json").read_text())
    kept["samples"] = kept.pop("num_samples")
    del kept["digests"]
    (run / "settings.json").write_text(json.dumps(kept))


def test_a_run_that_did_not_note_its_data_goes_on_and_notes_it(place, tmp_path, caplog):
    path = write_jsonl(tmp_path / "talk.jsonl", talk("abc"))
    Training(settings(place, tmp_path / "run", **data_of(path))).train()
    forget_data(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        assert Training(settings(place, tmp_path / "run", **data_of(path))).num_done == 2
    assert "the run in run was begun by an earlier version" in caplog.text
    edit(path, '"b"', '"d"')
    with pytest.raises(VLMError, match="has changed since"):
        Training(settings(place, tmp_path / "run", **data_of(path)))


def test_a_run_whose_sources_were_drawn_without_weights_is_not_gone_on_with(place, tmp_path):
    changes = {"data": [{"path": str(place / name)} for name in ("talk.jsonl", "more.jsonl")]}
    Training(settings(place, tmp_path / "run", **changes))
    forget_data(tmp_path / "run")
    with pytest.raises(VLMError, match="drew from sources without weights at random"):
        Training(settings(place, tmp_path / "run", **changes))


def test_filters_run_again_where_what_they_saw_has_changed(place, tmp_path):
    """Also in a run that was not begun: its settings were refused, and its data edited since."""
    path, filters = write_jsonl(tmp_path / "talk.jsonl", talk("abb")), [{"name": "duplicates"}]
    with pytest.raises(VLMError):
        Training(settings(place, tmp_path / "run", **data_of(path), filters=filters, trained={"parts": ["no"]}))
    Training(settings(place, tmp_path / "other", **data_of(path), filters=filters))
    selection = {name: (tmp_path / "other" / f"selection.{name}").read_bytes() for name in ("npz", "json")}
    for name, content in selection.items():
        (tmp_path / "run" / f"selection.{name}").write_bytes(content)
    edit(path, '"a"', '"b"')
    training = Training(settings(place, tmp_path / "run", **data_of(path), filters=filters))
    assert training.data.num_samples == 1


def test_a_digest_is_of_content_and_order_and_not_of_names(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "STRETCH_BYTES", 10)
    monkeypatch.setattr(digest, "MAX_BYTES", 60)
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(b"x" * 25)
    b.write_bytes(b"y" * 25)
    assert digest_files([a, b]) != digest_files([b, a])
    c.write_bytes(b"x" * 25)
    assert digest_files([a, b]) == digest_files([c, b])
    c.write_bytes(b"x" * 24 + b"z")
    assert digest_files([a, b]) != digest_files([c, b])
    long = bytes(range(200))
    a.write_bytes(long)
    seen = []
    for place in range(len(long)):
        b.write_bytes(long[:place] + b"\xff" + long[place + 1 :])
        seen.append(digest_files([a]) != digest_files([b]))
    assert sum(seen) == 60
    assert seen[0]
    assert seen[-1]
    b.write_bytes(long + b"\x00")
    assert digest_files([a]) != digest_files([b])
