"""Saving that fails or is killed: all of a checkpoint is written or nothing, and what was there stays."""

import os
import resource
import stat
from pathlib import Path

import pytest
import torch

from tests.checkpoint_models import assert_same, random_model, refusal, text_config
from tests.saved_models import MODEL, WEIGHTS, saved
from vlm.checkpoint import load_model, save_model, staged
from vlm.errors import VLMError


@pytest.fixture
def one(tmp_path):
    return saved(tmp_path / "one")


@pytest.fixture
def shards(tmp_path):
    return saved(tmp_path / "shards", max_shard_bytes=1e5)


@pytest.fixture
def pth(tmp_path):
    return saved(tmp_path / "pth", format="meta")


# C8: saving


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("format", ["hf", "meta"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, format, exists):
    folder = tmp_path / "out"
    if exists:
        save_model(MODEL, folder, format=format)
    before = contents(folder) if exists else None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = refusal(save_model, random_model(text_config(), seed=1), folder, format=format).message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "nothing was saved" in message
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if exists else [])
    if exists:
        assert contents(folder) == before
        assert_same(load_model(folder), MODEL)


def test_dev_full_says_no_space_is_left(tmp_path):
    with pytest.raises(VLMError, match="No space left"), staged(tmp_path / "out"), open("/dev/full", "wb") as file:
        file.write(b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_a_refusing_disk_leaves_everything_as_it_was(one, monkeypatch, call):
    before = contents(one)

    def refuse(*_args, **_named):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(*((Path, "mkdir") if call == "mkdir" else (os, call)), refuse)
    message = refusal(save_model, random_model(text_config(), seed=1), one).message
    assert "Read-only file system" in message
    monkeypatch.undo()
    after = contents(one)
    assert {name: after[name] for name in after} == {name: before[name] for name in after}
    if call != "replace":
        assert after == before


def test_a_read_only_folder_is_refused(one):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    one.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "Permission denied" in refusal(save_model, MODEL, one).message


def test_saving_over_what_was_loaded_is_safe(one, pth):
    for folder, format in ((one, "hf"), (pth, "meta")):
        loaded = load_model(folder)
        path = next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".pth"))
        path.write_bytes(b"")
        assert_same(loaded, MODEL)
        save_model(loaded, folder, format=format)
        assert_same(load_model(folder), MODEL)
        assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def test_fewer_shards_leave_no_old_ones(shards):
    (shards / "tokenizer.json").write_text("{}")
    save_model(MODEL, shards, max_shard_bytes=1.5e5)
    assert_same(load_model(shards), MODEL)
    assert not list(shards.glob("*of-00003*"))
    save_model(MODEL, shards)
    assert sorted(path.name for path in shards.iterdir()) == [
        "config.json",
        "generation_config.json",
        WEIGHTS,
        "tokenizer.json",
    ]


def test_the_other_format_is_not_mixed_in(one, pth):
    assert "other format" in refusal(save_model, MODEL, one, format="meta").message
    assert "other format" in refusal(save_model, MODEL, pth).message
    assert "is a file" in refusal(save_model, MODEL, one / WEIGHTS).message


def test_more_files_are_saved_with_the_model_or_not_at_all(tmp_path):
    save_model(MODEL, tmp_path / "out", write_more=lambda staging: (staging / "tokenizer.json").write_text("{}"))
    assert (tmp_path / "out" / "tokenizer.json").exists()

    def fail(_):
        raise KeyError("no tokenizer")

    with pytest.raises(KeyError):
        save_model(MODEL, tmp_path / "other", write_more=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_that_is_not_its_configs_is_refused(tmp_path):
    model = random_model(text_config())
    model.decoder.norm.register_parameter("bias", torch.nn.Parameter(torch.ones(3)))
    assert "decoder.norm.bias" in refusal(save_model, model, tmp_path / "out").message


def test_killed_while_files_move_in_a_folder_is_refused_not_mixed(one, monkeypatch):
    """After the first file moved the settings are gone; nothing reads the folder as a checkpoint."""
    moved = []

    class Killed(BaseException):
        pass

    real = os.replace

    def replace(source, target):
        if moved:
            raise Killed
        moved.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        save_model(random_model(text_config(), seed=1), one)
    assert "neither config.json nor params.json" in refusal(load_model, one).message
