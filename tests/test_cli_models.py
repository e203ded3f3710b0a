"""`vlm info` and `convert`: the sizes of a model, and its checkpoint in another format."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.command_line import asked, draw_two_and_none, last_json, run, save_endless_model
from vlm import VLM
from vlm.config import PRESETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_endless_model(tmp_path_factory.mktemp("cli") / "tiny-model")


@pytest.fixture(scope="module")
def model(folder) -> VLM:
    return VLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    return draw_two_and_none(tmp_path_factory.mktemp("pictures"))


# info


def test_info_knows_the_published_sizes():
    published = {"11b-vision": 10_670_220_835, "11b-vision-base": 10_642_941_475, "90b-vision": 88_593_355_323}
    for name, num_parameters in published.items():
        assert last_json(run("info", name, "--json"))["num_parameters"] == num_parameters
    sizes = last_json(run("info", "11b-vision", "--json"))
    assert sizes["weight_bytes"]["bfloat16"] == 2 * published["11b-vision"]
    assert sizes["weight_bytes"]["float32"] == 4 * published["11b-vision"]
    # The head is int8 in both; embedding and vision stay 16 bits.
    assert 1.12 < sizes["weight_bytes"]["int8"] / published["11b-vision"] < 1.15
    assert 0.74 < sizes["weight_bytes"]["int4"] / published["11b-vision"] < 0.76
    assert sizes["token_bytes"] == 131_072
    assert sizes["tile_bytes"] == 8 * 2 * 8 * 128 * 1601 * 2


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_sizes(name):
    result = run("info", name)
    assert result.exit_code == 0
    assert "bfloat16" in result.stdout
    assert "free now" in result.stdout


def test_info_reads_the_settings_of_a_folder_and_no_weights(folder, model, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    result = run("info", tmp_path, "--json", "--reference", "transformers")
    assert last_json(result)["num_parameters"] == model.info.num_parameters
    assert last_json(result)["tile_size"] == 28
    assert last_json(result)["reference"] == "transformers"
    assert "transformers (as stock transformers" in result.stdout


def test_a_model_fits_where_the_memory_is_free(monkeypatch):
    monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda: 2 * 10**9)
    fits = last_json(run("info", "1b", "--json"))["fits"]["cpu"]
    assert fits == {"float32": False, "bfloat16": False, "int8": True, "int4": True}
    assert last_json(run("info", "tiny", "--json"))["fits"]["cpu"]["float32"] is True
    # Of the 8.7 GB that the 11B needs in 4 bits, tower and embedding are 2.84.
    for free, answer in ((9, "cpu yes"), (6, "cpu yes, 2.8 GB of it left in the files"), (5, "cpu no")):
        monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda free=free: free * 10**9)
        shown = run("info", "11b-vision", "--json")
        assert f"8.7 GB: {answer}\n" in shown.stdout
        assert last_json(shown)["fits"]["cpu"]["int4"] == (free > 5)
    # The published files are bfloat16: as float32 nothing could stay in them.
    monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda: 40 * 10**9)
    assert last_json(run("info", "11b-vision", "--json"))["fits"]["cpu"]["float32"] is False


# convert


def test_converting_there_and_back_keeps_the_model(folder, model, tmp_path, pictures):
    there = run("convert", folder, tmp_path / "meta", "--format", "meta", "--json")
    back = run("convert", tmp_path / "meta", tmp_path / "hf", "--format", "hf")
    assert (there.exit_code, back.exit_code) == (0, 0), there.output + back.output
    assert last_json(there)["files"] == sorted(path.name for path in (tmp_path / "meta").iterdir())
    assert "SHA256SUMS" in last_json(there)["files"]
    messages = asked(pictures[:1], "Why?")
    for name in ("meta", "hf"):
        assert VLM.from_pretrained(tmp_path / name).logits(messages).equal(model.logits(messages))


def test_convert_says_how_weights_are_stored_and_not_what_was_asked_for(folder, tmp_path):
    assert run("convert", folder, tmp_path / "int8", "--quantize", "int8").exit_code == 0
    done = run("convert", tmp_path / "int8", tmp_path / "again", "--format", "hf", "--dtype", "float32", "--json")
    assert "parameters as int8" in done.stdout
    found = last_json(done)
    assert (found["quantize"], found["stored"].split()[0]) == (None, "int8")


def test_convert_replaces_a_checkpoint_only_when_told_to(folder, tmp_path):
    assert run("convert", folder, tmp_path / "new", "--format", "hf").exit_code == 0
    refused = run("convert", folder, tmp_path / "new", "--format", "hf", "--dtype", "bfloat16")
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)
    done = run("convert", folder, tmp_path / "new", "--format", "hf", "--dtype", "bfloat16", "--overwrite")
    assert done.exit_code == 0
    assert VLM.from_pretrained(tmp_path / "new").info.dtype == torch.bfloat16


def test_convert_brings_along_what_the_source_says_of_its_tokenizers_use(folder, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(folder, source)
    texts = {"tokenizer_config.json": '{"chat_template":  "{{ 1 }}"}', "chat_template.jinja": "{{ 2 }}\n"}
    for name, text in texts.items():
        (source / name).write_text(text)
    (source / "tokenizer.model").unlink()
    assert run("convert", source, target, "--format", "hf").exit_code == 0
    assert {name: (target / name).read_text() for name in texts} == texts
    assert all(name in (target / "SHA256SUMS").read_text() for name in texts)
    assert run("convert", source, tmp_path / "meta", "--format", "meta").exit_code == 0
    assert not any((tmp_path / "meta" / name).exists() for name in texts)
    (source / "chat_template.jinja").unlink()
    (source / "chat_template.jinja").symlink_to(folder / "config.json")
    assert "outside the folder" in run("convert", source, tmp_path / "linked", "--format", "hf").stderr
