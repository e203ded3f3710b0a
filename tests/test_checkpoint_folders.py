"""Folders that lie or lead elsewhere, and what loading one takes of the machine: refused with the fault named."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.checkpoint_models import assert_same, edit_json, refusal
from tests.saved_models import INDEX, MODEL, WEIGHTS, saved
from vlm.checkpoint import load_model, read_config
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


# C6: the index and the folder


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths that Python opens meanwhile."""
    seen: list[str] = []
    watching = True
    # A hook stays for good; later tests of this process must not be listened to, and what they open not be kept.
    sys.addaudithook(lambda event, args: seen.append(str(args[0])) if watching and event == "open" else None)
    yield seen
    watching = False


def test_an_index_that_lies_is_refused(opened, shards, tmp_path):
    good = (shards / INDEX).read_text()
    outside = tmp_path / "outside.safetensors"
    shutil.copy(sorted(shards.glob("*.safetensors"))[0], outside)
    first, second = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
    assert len(list(shards.glob("*.safetensors"))) == 3
    key = "model.embed_tokens.weight"

    def says(said, change):
        (shards / INDEX).write_text(good)
        edit_json(shards / INDEX, change)
        opened.clear()
        assert said in refusal(load_model, shards).message
        inside = {str(shards), str(shards.resolve())}
        assert all(str(Path(name).parent) in inside for name in opened if name.endswith((".json", ".safetensors")))

    says("cannot be found", lambda index: index["weight_map"].update({key: "model-00009-of-00003.safetensors"}))
    says("disagree about 1 tensors", lambda index: index["weight_map"].update({key: second}))
    says("disagree about 1 tensors", lambda index: index["weight_map"].pop(key))
    says("disagree about 1 tensors", lambda index: index["weight_map"].update({"new": first}))
    says("total_size 5", lambda index: index["metadata"].update(total_size=5))
    says("total_size '5'", lambda index: index["metadata"].update(total_size="5"))
    says("plain name", lambda index: index["weight_map"].update({key: "../outside.safetensors"}))
    says("plain name", lambda index: index["weight_map"].update({key: str(outside)}))
    says("plain name", lambda index: index["weight_map"].update({key: "..\\outside.safetensors"}))
    says("plain name", lambda index: index["weight_map"].update({key: ""}))
    says("plain name", lambda index: index["weight_map"].update({key: ".."}))
    says("no weight_map", lambda index: index["weight_map"].update({key: 7}))
    says("no weight_map", lambda index: index.pop("weight_map"))


def test_one_tensor_in_two_shards_is_refused(shards):
    first, second, _ = sorted(shards.glob("*.safetensors"))
    state = load_file(second)
    save_file(state | {"model.embed_tokens.weight": load_file(first)["model.embed_tokens.weight"]}, second)
    assert "disagree about 1 tensors: model.embed_tokens.weight" in refusal(load_model, shards).message


def test_links_out_of_the_folder_are_refused(one, tmp_path):
    (one / WEIGHTS).rename(tmp_path / "outside")
    (one / WEIGHTS).symlink_to(tmp_path / "outside")
    assert "outside the folder" in refusal(load_model, one).message
    (one / WEIGHTS).unlink()
    (one / WEIGHTS).symlink_to("/dev/zero")
    assert "outside the folder" in refusal(load_model, one).message
    (one / WEIGHTS).unlink()
    (one / WEIGHTS).symlink_to(WEIGHTS)
    (tmp_path / "outside").rename(one / "weights")
    refusal(load_model, one)
    (one / WEIGHTS).unlink()
    (one / WEIGHTS).symlink_to("weights")
    assert_same(load_model(one), MODEL)


def test_a_snapshot_of_the_hubs_cache_is_links_into_its_blobs(one, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in one.iterdir():
        shutil.copy(path, repository / "blobs" / f"hash-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-{path.name}")
    assert_same(load_model(snapshot), MODEL)
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(one / WEIGHTS)
    assert "outside the folder" in refusal(load_model, snapshot).message


def test_pipes_devices_and_folders_are_refused_without_waiting(one, pth):
    for folder, name in ((one, WEIGHTS), (pth, "consolidated.00.pth"), (one, "config.json")):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "no regular file" in refusal(load_model, folder).message
        (folder / name).unlink()
        (folder / name).mkdir()
        assert "no regular file" in refusal(load_model, folder).message


def test_files_without_permission_are_refused(one, monkeypatch):
    def denied(*_args, **_named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "Permission denied" in refusal(read_config, one).message


# C10: memory


def test_a_model_larger_than_free_memory_is_refused_before_reading(one, monkeypatch):
    monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda: 1000)
    with pytest.raises(VLMError, match="of memory are free") as caught:
        load_model(one)
    assert caught.value.code == "device_unavailable"


def test_nothing_stays_open(one, shards, pth):
    before = len(os.listdir("/proc/self/fd"))
    for folder in (one, shards, pth):
        load_model(folder)
        (folder / "config.json").unlink(missing_ok=True)
        (folder / "params.json").unlink(missing_ok=True)
        refusal(load_model, folder)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.full
def test_peak_memory_of_a_gigabyte(tmp_path):
    benchmark = Path(__file__).parents[1] / "benchmarks" / "load_memory.py"
    found = subprocess.run(
        [sys.executable, benchmark, "--folder", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert "hf, one file" in found
    assert "OVER" not in found, found


@pytest.mark.parametrize(("low", "high"), [(4.0, 4.0), (4.0, 1.0)])
def test_frequency_factors_that_cannot_be_computed_are_refused_in_the_files_own_words(one, pth, low, high):
    def hf(settings):
        settings["rope_scaling"].update(low_freq_factor=low, high_freq_factor=high)

    def meta(settings):
        settings["sightline"]["rope_scaling"].update(low_frequency_factor=low, high_frequency_factor=high)

    edit_json(one / "config.json", hf)
    edit_json(pth / "params.json", meta)
    assert f"config.json: low_freq_factor is {low}; it must be below high_freq_factor {high}" in refusal(
        read_config, one
    ).message  # fmt: skip
    assert f"params.json: low_frequency_factor is {low}; it must be below" in refusal(read_config, pth).message
