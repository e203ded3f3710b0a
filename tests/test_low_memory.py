"""Weights that stay in their file: the same model, its pages let go, and nothing that was written lost."""

import copy
import gc
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.checkpoint_models import text_config
from tests.conftest import random_model
from tests.conversations import FOUR_TILES, MIXED, refusal, user
from vlm import VLM, GenerationConfig, Tokenizer, preset
from vlm.checkpoint import load_model, save_model
from vlm.checkpoint.hf import WEIGHTS
from vlm.checkpoint.mapped import MappedWeights
from vlm.checkpoint.safetensors_file import open_safetensors

SHORT = GenerationConfig(max_new_tokens=5)


@pytest.fixture(scope="module")
def source() -> VLM:
    """A model with a vision tower of a few megabytes: pages are let go whole."""
    config = preset("tiny")
    return VLM(random_model(replace(config, vision=replace(config.vision, mlp_dim=1 << 15))), Tokenizer.bytes_only())


@pytest.fixture
def folder(source, tmp_path) -> Path:
    source.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def resident(folder: Path) -> int:
    """Return the bytes of the folder's weights that are mapped into this process and in memory."""
    lines, count, inside = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        if "-" in line.split()[0]:
            inside = line.endswith(str(folder / WEIGHTS))
        elif inside and line.startswith("Rss:"):
            count += int(line.split()[1]) * 1024
    return count


def test_it_is_the_same_model(folder, source):
    mapped = VLM.from_pretrained(folder, low_memory=True)
    assert mapped.model.release is not None
    for messages in MIXED:
        assert torch.equal(mapped.logits(messages), source.logits(messages))
    assert mapped.encode_image(FOUR_TILES).model_key == source.encode_image(FOUR_TILES).model_key


def test_pages_are_let_go_layer_by_layer_and_come_back(folder):
    mapped = VLM.from_pretrained(folder, low_memory=True)
    tower = sum(weight.nbytes for weight in mapped.model.encoder.parameters())
    # How much is there after a layer was used, before those after it.
    seen = []
    for layer in mapped.model.encoder.local_layers:
        layer.register_forward_hook(lambda *_: seen.append(resident(folder)))
    for _ in range(2):
        mapped.images.forget()
        assert mapped.encode_image(FOUR_TILES).num_tiles == 4
        assert resident(folder) < tower / 20
    assert max(seen) < tower / 2
    sums = [weight.sum() for weight in mapped.model.encoder.parameters()]
    assert resident(folder) > tower * 0.9, "the tower is in memory when it is looked at"
    mapped.model.release(mapped.model.encoder.parameters())
    assert resident(folder) < tower / 20
    assert sums == [weight.sum() for weight in mapped.model.encoder.parameters()]


def test_all_that_a_picture_goes_through_is_let_go(folder, monkeypatch):
    released = set()
    monkeypatch.setattr(MappedWeights, "release", lambda _, weights: released.update(map(id, weights)))
    mapped = load_model(folder, low_memory=True)
    mapped.encode(torch.zeros(1, 1, 3, 28, 28), [(1, 1)])
    assert {id(weight) for part in (mapped.encoder, mapped.projector) for weight in part.parameters()} == released


def test_what_was_written_stays_and_the_file_does_not_change(folder):
    before = (folder / WEIGHTS).read_bytes()
    model = load_model(folder, low_memory=True)
    changed, neighbour = model.encoder.local_layers[0].fc1.weight, model.encoder.local_layers[0].fc2.weight
    expected = changed.detach() + 1
    with torch.no_grad():
        changed.add_(1)
    model.release(model.encoder.parameters())
    assert torch.equal(changed, expected)
    assert torch.equal(neighbour, load_model(folder).encoder.local_layers[0].fc2.weight)
    assert (folder / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("way", ["data", "fused", "inference"])
def test_what_torch_does_not_count_stays_too(folder, way):
    with torch.inference_mode(way == "inference"):
        model = load_model(folder, low_memory=True)
    weight = model.encoder.global_layers[0].fc1.weight
    if way == "data":
        weight.data.mul_(2)
    elif way == "inference":
        with torch.inference_mode():
            weight.mul_(2)
    else:
        weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([weight], lr=1, fused=True).step()
    expected = weight.detach().clone()
    assert not torch.equal(expected, load_model(folder).encoder.global_layers[0].fc1.weight)
    model.release(model.encoder.parameters())
    assert torch.equal(weight, expected)


def test_a_copy_is_in_memory_and_stands_alone(folder, source):
    mapped = VLM.from_pretrained(folder, low_memory=True).model
    copied = copy.deepcopy(mapped)
    expected = copied.projector.weight.detach().clone()
    copied.release(copied.parameters())
    assert torch.equal(copied.projector.weight, expected)
    assert torch.equal(VLM(copied, source.tokenizer).logits(MIXED[1]), source.logits(MIXED[1]))


def test_a_file_that_cannot_be_mapped_is_read(folder, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("vlm.checkpoint.safetensors_file.mmap.mmap", refuse)
    assert load_model(folder, low_memory=True).release is None
    assert "low_memory changes nothing here" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems promise all memory that is mapped, or none")
def test_a_file_larger_than_memory_can_be_mapped(tmp_path):
    size = 1 << 40
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / WEIGHTS, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    with ExitStack() as opened:
        found = open_safetensors(tmp_path, WEIGHTS, opened)["weight"].map()
        assert found.values[-1] == 0


def test_saved_over_its_own_folder_it_goes_on(folder, source):
    mapped = VLM.from_pretrained(folder, low_memory=True)
    VLM(random_model(source.model.config, seed=1), source.tokenizer).save_pretrained(folder)
    assert torch.equal(mapped.logits(user(FOUR_TILES, "what?")), source.logits(user(FOUR_TILES, "what?")))


def test_one_mapping_keeps_one_file_open_until_the_model_is_gone(folder):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    model = load_model(folder, low_memory=True)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del model
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not resident(folder)


def test_it_is_so_where_memory_is_short_alone(folder, monkeypatch):
    weights = load_model(folder).state_dict()
    total = sum(weight.nbytes for weight in weights.values())
    kept = sum(weight.nbytes for name, weight in weights.items() if name.startswith("decoder.layers"))
    for free, is_mapped in ((None, False), (2 * total, False), (int(1.2 * total), True), (total // 2, True)):
        monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda free=free: free)
        assert (VLM.from_pretrained(folder).model.release is not None) == is_mapped
        assert load_model(folder).release is None if free != total // 2 else refusal(load_model, folder)
    # What is not mapped has to fit.
    monkeypatch.setattr("vlm.checkpoint.memory.free_bytes", lambda: kept)
    assert refusal(load_model, folder, low_memory=True).code == "device_unavailable"


def test_another_dtype_and_another_format_are_read_into_memory(folder, source, tmp_path, caplog):
    assert load_model(folder, low_memory=True, dtype=torch.bfloat16).release is None
    assert "low_memory changes nothing here" in caplog.text
    save_model(source.model, tmp_path / "meta", format="meta")
    assert load_model(tmp_path / "meta", low_memory=True).release is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_text_only_model_leaves_its_embedding_unless_it_is_its_head(tmp_path, tied):
    expected = random_model(text_config(tied=tied))
    save_model(expected, tmp_path)
    model = load_model(tmp_path, low_memory=True)
    assert (model.release is None) == tied
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids), expected(ids))
    # Quantised, the head is one of its own.
    assert load_model(tmp_path, low_memory=True, quantize="int8").release is not None


def test_a_quantised_checkpoint_leaves_its_tower_too(folder, tmp_path):
    quantised = VLM.from_pretrained(folder, quantize="int8")
    quantised.save_pretrained(tmp_path / "int8")
    mapped = VLM.from_pretrained(tmp_path / "int8", low_memory=True)
    assert mapped.model.release is not None
    messages = user(FOUR_TILES, "what?")
    assert mapped.chat(messages, config=SHORT).token_ids == quantised.chat(messages, config=SHORT).token_ids
