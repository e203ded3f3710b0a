"""Quantised folders: written and read again, made tensor by tensor, and those of other programs."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_models import edit_json, random_model, refusal, text_config
from tests.conversations import MIXED
from vlm import VLM, Tokenizer, VLMError, preset
from vlm.checkpoint import convert_to_hf, load_model, read_config, save_model, stays_quantized, stored_precision
from vlm.checkpoint.opened import OpenCheckpoint
from vlm.quantization import quantize_model, quantized_layers

KINDS = ("W4A16", "W4A16, rows", "W4A16 asymmetric", "W8A16", "W8A16 in groups", "W8A16 asymmetric", "W8A8",
         "FP8, one scale", "FP8, rows")  # fmt: skip


def logits(model) -> torch.Tensor:
    vlm = VLM(model, Tokenizer.bytes_only())
    return torch.cat([vlm.logits(messages) for messages in (MIXED[:2] if model.config.vision else MIXED[:1])])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tiny model plain, and quantised tensor by tensor."""
    folder = tmp_path_factory.mktemp("quantised")
    save_model(random_model(), folder / "plain")
    for precision in ("int8", "int4"):
        convert_to_hf(folder / "plain", folder / precision, quantize=precision)
    return folder


# Our own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_when_loaded_when_saved_and_when_converted_is_the_same(folders, tmp_path, precision, dtype):
    loaded = load_model(folders / "plain", quantize=precision, dtype=dtype)
    save_model(loaded, tmp_path / "saved")
    convert_to_hf(folders / "plain", tmp_path / "converted", quantize=precision, dtype=dtype)
    saved, converted = (load_model(tmp_path / name) for name in ("saved", "converted"))
    expected = logits(loaded)
    assert torch.equal(logits(saved), expected)
    assert torch.equal(logits(converted), expected)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "converted" / name).read_bytes()
    assert saved.decoder.embedding.weight.dtype == dtype


def test_a_quantised_folder_is_smaller_and_says_what_it_is(folders):
    sizes = [(folders / name / "model.safetensors").stat().st_size for name in ("plain", "int8", "int4")]
    assert sizes[0] > sizes[1] > sizes[2]
    assert stored_precision(folders / "plain") is None
    assert [stays_quantized(folders / name) for name in ("plain", "int8", "int4")] == [False, True, True]
    assert stored_precision(folders / "int4") == "int8 and int4 in groups of 32 (compressed-tensors, pack-quantized)"
    assert read_config(folders / "int4") == preset("tiny")


def test_shards_hold_whole_weights_and_load(folders, tmp_path):
    convert_to_hf(folders / "plain", tmp_path / "out", quantize="int4", max_shard_bytes=5e4)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert torch.equal(logits(load_model(tmp_path / "out")), logits(load_model(folders / "int4")))


def test_a_quantised_folder_converted_again_stays_what_it_is(folders, tmp_path):
    convert_to_hf(folders / "int4", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folders / "int4" / name).read_bytes()
    assert torch.equal(logits(load_model(folders / "int4", quantize="int4")), logits(load_model(folders / "int4")))


@pytest.mark.parametrize("tied", [False, True])
def test_text_only_models_and_meta_folders_are_quantised_too(tmp_path, tied):
    model = random_model(text_config(tied=tied))
    save_model(model, tmp_path / "meta", format="meta")
    convert_to_hf(tmp_path / "meta", tmp_path / "hf", quantize="int8")
    loaded = load_model(tmp_path / "hf")
    assert torch.equal(logits(loaded), logits(load_model(tmp_path / "meta", quantize="int8")))
    assert (logits(loaded) - logits(model)).abs().max() < 0.05 * logits(model).abs().max()
    # A head that was the embedding is one of its own, in 8 bits; the embedding stays what it was.
    assert quantized_layers(loaded)["decoder.head"].scheme.bits == 8
    assert torch.equal(loaded.decoder.embedding.weight, model.decoder.embedding.weight)
    assert not loaded.config.decoder.tied
    expected = logits(loaded)
    quantize_model(model, "int8")
    assert torch.equal(logits(model), expected)
    assert model.config == loaded.config
    save_model(model, tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved")), expected)


def test_conversion_holds_one_weight_at_a_time(folders, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), [0]
    read = OpenCheckpoint.read

    def counted(self, name, dtype, device="cpu"):
        tensor = read(self, name, dtype, device)
        alive.add(tensor)
        most[0] = max(most[0], sum(tensor.nbytes for tensor in alive))
        return tensor

    monkeypatch.setattr(OpenCheckpoint, "read", counted)
    convert_to_hf(folders / "plain", tmp_path / "out", quantize="int4")
    largest = max(tensor.numel() for tensor in random_model().state_dict().values()) * 4
    assert 0 < most[0] <= 2 * largest


def test_progress_tells_every_weight_once(folders, tmp_path):
    seen = []
    convert_to_hf(folders / "plain", tmp_path / "out", quantize="int4", progress=seen.append)
    assert sum(seen) == sum(tensor.numel() for tensor in random_model().state_dict().values())


# Other programs'


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_compressed_tensors_computes_what_that_library_reads(tmp_path, kind, caplog):
    pytest.importorskip("compressed_tensors", reason="not run: compressed-tensors")
    from tests import compressed_folders

    assert set(compressed_folders.KINDS) == set(KINDS)
    twin = compressed_folders.write(random_model(), tmp_path / "theirs", kind)
    loaded, expected = load_model(tmp_path / "theirs"), logits(load_model(twin))
    assert (logits(loaded) - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert bool(quantized_layers(loaded)) != kind.startswith("FP8")
    assert ("quantised activations" in caplog.text) == (kind in ("W8A8", "FP8, one scale", "FP8, rows"))
    save_model(loaded, tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved")), logits(loaded))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_transformers_reads_what_is_written(folders, precision):
    pytest.importorskip("compressed_tensors", reason="not run: compressed-tensors")
    from transformers import MllamaForConditionalGeneration

    theirs = MllamaForConditionalGeneration.from_pretrained(folders / precision)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, load_model(folders / precision)(ids), atol=1e-4, rtol=1e-4)


def test_a_weight_is_stored_bit_for_bit_as_the_format_has_it(folders):
    """An independent twin that follows the format's description number by number."""
    plain, stored = (load_file(folders / name / "model.safetensors") for name in ("plain", "int4"))
    for module, bits, size in (
        ("language_model.model.layers.1.cross_attn.k_proj", 4, 32),
        ("language_model.model.layers.0.mlp.down_proj", 8, 48),
    ):
        rows, cols = stored[f"{module}.weight_shape"].tolist()
        scales = stored[f"{module}.weight_scale"]
        assert list(plain[f"{module}.weight"].shape) == [rows, cols]
        assert list(scales.shape) == [rows, cols // size]
        per_word = 32 // bits
        for row in range(0, rows, 5):
            for word in range(cols // per_word):
                found = stored[f"{module}.weight_packed"][row, word].item() % 2**32
                for place in range(per_word):
                    col = word * per_word + place
                    number = round((plain[f"{module}.weight"][row, col] / scales[row, col // size]).item())
                    number = min(max(number, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
                    assert (found >> (bits * place)) % 2**bits == number + 2 ** (bits - 1)


# Refusals


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
         "gptq, which cannot be read; have the program that made it write it expanded"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq, which cannot be read; make it a comp"),
        ({"quantization_config": {"quant_method": "exl2", "bits": 4.25}}, "exl2, which"),
        ({"quantization_config": {"quant_method": "hqq"}}, "hqq, which"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "fp8 (e4m3), which cannot be read; expand"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes, which"),
        ({"quantization": {"group_size": 32, "bits": 8, "mode": "mxfp8"}}, "MLX as mxfp8"),
        ({"quantization": "4 bits"}, "MLX as str"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}}, "nvfp4"),
        ({"quantization_config": "int4"}, "of type str"),
    ],
    ids=str,
)  # fmt: skip
def test_every_other_format_is_refused_by_name(folders, tmp_path, settings, said):
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((folders / "plain/config.json").read_text()) | settings)
    )
    error = refusal(read_config, tmp_path)
    assert said in error.message
    assert "give the original weights" in error.message


@pytest.mark.parametrize(
    ("end", "program"), [("qweight", "AWQ or GPTQ"), ("q_weight", "EXL2"), ("trellis", "EXL3"), ("W_q", "HQQ")]
)
def test_it_is_told_from_the_tensors_where_the_settings_are_silent(folders, tmp_path, end, program):
    (tmp_path / "config.json").write_bytes((folders / "plain" / "config.json").read_bytes())
    save_file({f"{_MODULE}.{end}": torch.zeros(4, 4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    assert f"quantised by {program}, which cannot be read" in refusal(load_model, tmp_path).message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q: q.pop("config_groups"), "no config_groups"),
        (lambda q: q.update(transform_config={"config_groups": {"R1": {}}}), "transform_config"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=3), "int of 3 bits"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(actorder="group"), "actorder group"),
        (lambda q: q["config_groups"].update(NVFP4=["Linear"]), "'NVFP4'"),
    ],
)
def test_settings_that_cannot_be_computed_are_refused(folders, tmp_path, change, said):
    (tmp_path / "config.json").write_bytes((folders / "int4" / "config.json").read_bytes())
    edit_json(tmp_path / "config.json", lambda settings: change(settings["quantization_config"]))
    assert said in refusal(read_config, tmp_path).message


_MODULE = "language_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(f"{_MODULE}.weight_scale"), "q_proj: weight_scale is missing"),
        (lambda s: s.pop(f"{_MODULE}.weight_packed"), "q_proj: weight_packed is missing"),
        (lambda s: s.update({f"{_MODULE}.weight_packed": torch.zeros(32, 3, dtype=torch.int32)}), "4 or 8 bits"),
        (lambda s: s.update({f"{_MODULE}.weight_scale": torch.ones(32, 5)}), "does not divide [32, 32]"),
        (lambda s: s.update({f"{_MODULE}.weight_shape": torch.tensor([32, 64])}), "weight_shape is [32, 64]"),
        (lambda s: s.update({f"{_MODULE}.weight_g_idx": torch.arange(32)}), "weight_g_idx"),
    ],
)
def test_parts_that_do_not_fit_are_named(folders, tmp_path, change, said):
    (tmp_path / "config.json").write_bytes((folders / "int4" / "config.json").read_bytes())
    stored = load_file(folders / "int4" / "model.safetensors")
    change(stored)
    save_file(stored, tmp_path / "model.safetensors")
    assert said in refusal(load_model, tmp_path).message


def test_a_quantised_checkpoint_is_not_quantised_otherwise(folders):
    with pytest.raises(VLMError) as caught:
        load_model(folders / "int4", quantize="int8")
    assert caught.value.code == "invalid_request"
    assert "is int4 already and int8 was asked for; leave quantize out" in caught.value.message


def test_metas_layout_has_no_form_for_quantised_layers(folders, tmp_path):
    error = refusal(save_model, load_model(folders / "int8"), tmp_path / "meta", format="meta")
    assert "no form in Meta's layout" in error.message
    assert not (tmp_path / "meta").exists()
