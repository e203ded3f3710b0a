"""Folders of GGUF files, as Ollama stores Llama 3.2 Vision."""

import logging
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.checkpoint_models import assert_same, random_model, refusal
from tests.conversations import MIXED
from tests.foreign_folders import difference
from vlm import VLM, Tokenizer, VLMError
from vlm.checkpoint import load_model, read_config, read_tokenizer, stays_quantized, stored_precision
from vlm.cli import main
from vlm.quantization import quantized_layers
from vlm.tokenizer_files.llama3 import meta_special_ids

gguf = pytest.importorskip("gguf", reason="not run: gguf")
from tests import gguf_folders  # noqa: E402

KINDS = {"F16": None, "Q8_0": "Q8_0", "Q4_K_M": "Q4_K and Q6_K"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    model = random_model(gguf_folders.config())
    for kind in KINDS:
        gguf_folders.write(model, folder / kind, kind)
    gguf_folders.write(model, folder / "projector", "Q8_0", projector=True)
    return folder


@pytest.mark.parametrize("kind", [*KINDS, "projector"])
def test_ollamas_files_give_what_their_expanded_weights_do(folders, kind):
    assert read_config(folders / kind) == gguf_folders.config()
    assert difference(folders / kind, folders / f"{kind} expanded", MIXED[:2], dtype=torch.float32) <= 1e-3
    stored = KINDS.get(kind, "Q8_0")
    assert stored_precision(folders / kind) == (stored and f"{stored} (GGUF), expanded when read")


@pytest.mark.parametrize("tied", [False, True])
def test_text_only_files_too(tmp_path, tied):
    config = gguf_folders.config(vision=False, tied=tied)
    twin = gguf_folders.write(random_model(config), tmp_path / "llama", "Q8_0")
    assert read_config(tmp_path / "llama") == config
    assert difference(tmp_path / "llama", twin, MIXED[:1], dtype=torch.float32) <= 1e-3


def test_plain_floats_are_no_quantised_weights(folders, caplog):
    with caplog.at_level(logging.INFO, "vlm.checkpoint.opened"):
        load_model(folders / "F16")
        assert "quantised" not in caplog.text
        load_model(folders / "Q8_0")
        assert "quantised tensors are expanded" in caplog.text
    assert [stays_quantized(folders / kind) for kind in KINDS] == [False, False, False]


def test_it_is_bfloat16_unless_said_otherwise_and_small_where_that_is_asked_for(folders, tmp_path):
    shown = CliRunner().invoke(main, ["info", str(folders / "Q4_K_M")])
    assert "stored      Q4_K and Q6_K (GGUF), expanded when read" in shown.stdout
    assert load_model(folders / "Q4_K_M").decoder.embedding.weight.dtype == torch.bfloat16
    loaded = load_model(folders / "Q4_K_M", quantize="int4")
    assert len(quantized_layers(loaded)) > 20
    done = CliRunner().invoke(main, ["convert", str(folders / "Q4_K_M"), str(tmp_path / "out"), "--quantize", "int4"])
    assert done.exit_code == 0, done.output
    assert_same(load_model(tmp_path / "out"), loaded)
    assert_same(load_model(folders / "Q4_K_M expanded", quantize="int4", dtype=torch.bfloat16), loaded)


def test_the_tokenizer_is_in_the_file(folders, tmp_path):
    merged = {b"th": 256, b"the": 257, "é".encode(): 258}
    tokenizer = Tokenizer({bytes([value]): value for value in range(256)} | merged, meta_special_ids(259))
    expected = tokenizer.files("hf")["tokenizer.json"]
    file = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    gguf_folders.add_tokenizer(file, expected)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.close()
    found = read_tokenizer(tmp_path)
    assert found.files("hf")["tokenizer.json"] == expected
    (tmp_path / "tokenizer.json").write_bytes(expected)
    expected = read_tokenizer(tmp_path)
    for name in ("ranks", "special_ids", "text_ids", "pattern", "image_marker_id"):
        assert getattr(found, name) == getattr(expected, name)
    assert VLM.from_pretrained(folders / "F16").tokenizer.ranks == Tokenizer.bytes_only().ranks


# Refusals


@pytest.fixture
def folder(folders, tmp_path) -> Path:
    shutil.copytree(folders / "F16", tmp_path / "F16")
    return tmp_path / "F16"


def test_without_the_library_its_name_is_given(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(VLMError, match="which is not installed; run: pip install gguf"):
        load_model(folder)


def test_the_text_alone_is_half_a_model(folders, folder):
    (folder / "model.gguf").write_bytes((folders / "projector" / "model.gguf").read_bytes())
    assert "holds half a model; put the GGUF files of the text and of the projector there" in refusal(
        read_config, folder
    ).message  # fmt: skip


def test_parts_of_one_file_are_not_two(folder):
    shutil.copy(folder / "model.gguf", folder / "again.gguf")
    assert "in two GGUF files" in refusal(read_config, folder).message


def test_a_file_cut_anywhere_is_one_clear_error(folder):
    whole = (folder / "model.gguf").read_bytes()
    for part in range(0, len(whole) - 1, len(whole) // 23):
        (folder / "model.gguf").write_bytes(whole[:part])
        assert "model.gguf" in refusal(load_model, folder).message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"GGUF\3", b"GGUF\1", "no GGUF file of version 2 or 3"),
        (b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + b"\xff" * 8, "ends early or is damaged"),
        (b"mllama", b"qwen2v", "architecture qwen2v; expected mllama"),
        (b"mllama.block_count", b"mllama.block_counT", "lack the settings block_count"),
        (b"mllama.rope.freq_base", b"mllama.rope.freq_basE", "lack the settings rope.freq_base"),
        (b"token_embd.weight", b"token_embD.weight", "vocab_size is -8"),
        (b"blk.0.attn_q.weight", b"blk.0.attn_Q.weight", "1 missing, 1 unexpected"),
        (b"v.tile_position_embd.gate", b"v.tile_position_embD.gate", "1 missing, 1 unexpected"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_should_be_is_refused(folder, old, new, said):
    content = (folder / "model.gguf").read_bytes()
    assert old in content
    (folder / "model.gguf").write_bytes(content.replace(old, new, 1)[: len(content)])
    assert said in refusal(load_model, folder).message


def test_another_scaling_of_the_frequencies_is_refused(tmp_path):
    config = gguf_folders.config(vision=False)
    scaling = replace(config.decoder.rope_scaling, original_context=4096)
    model = random_model(replace(config, decoder=replace(config.decoder, rope_scaling=scaling)))
    gguf_folders.write(model, tmp_path / "other", "F16")
    assert "rope_freqs.weight is not Llama 3.1's scaling by 8" in refusal(read_config, tmp_path / "other").message


def test_gates_that_are_no_tanh_are_refused(folder):
    content = bytearray((folder / "model.gguf").read_bytes())
    tensor = next(t for t in gguf.GGUFReader(folder / "model.gguf").tensors if t.name == "v.position_embd.gate")
    content[tensor.data_offset : tensor.data_offset + 4] = struct.pack("<f", -1.328125)
    (folder / "model.gguf").write_bytes(content)
    assert "are not a tanh and 1 less it" in refusal(load_model, folder).message


def test_a_tokenizer_of_another_model_is_refused(folder):
    content = (folder / "model.gguf").read_bytes()
    (folder / "model.gguf").write_bytes(content.replace(b"llama-bpe", b"qwen2-bpe"))
    with pytest.raises(VLMError, match="tokenizer of kind 'gpt2', 'qwen2-bpe'; expected Llama 3's"):
        VLM.from_pretrained(folder)
