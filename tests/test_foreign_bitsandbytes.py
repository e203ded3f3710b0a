"""Folders that bitsandbytes quantised to 4 bits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_models import assert_same, edit_json, refusal
from tests.conversations import MIXED
from tests.foreign_folders import difference, is_linear, make_over, wide_model
from vlm.checkpoint import convert_to_hf, load_model, read_config, stored_precision
from vlm.quantization import quantized_layers

functional = pytest.importorskip("bitsandbytes.functional", reason="not run: bitsandbytes")
KINDS = {"nf4 nested": ("nf4", True), "nf4": ("nf4", False), "fp4 nested": ("fp4", True)}


def settings(kind: str, nested: bool) -> dict:
    return {
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": nested,
        }
    }


def quantize(name: str, tensor: torch.Tensor, kind: str, nested: bool):
    """Return what a linear layer of bitsandbytes saves; see its nn/modules.py, Linear4bit._save_to_state_dict."""
    if not is_linear(name):
        return None
    codes, state = functional.quantize_4bit(tensor, quant_type=kind, compress_statistics=nested)
    parts = {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
    return {name: codes, **parts}, functional.dequantize_4bit(codes, state)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bitsandbytes")
    for name, how in KINDS.items():
        make_over(wide_model(), folder / name, lambda *given, how=how: quantize(*given, *how), **settings(*how))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_bitsandbytes_gives_what_its_expanded_weights_do(folders, kind):
    assert difference(folders / kind, folders / f"{kind} expanded", MIXED[:2]) <= 1e-3
    assert_same(load_model(folders / kind), load_model(folders / f"{kind} expanded"))
    assert not quantized_layers(load_model(folders / kind))
    nested = " with double quantisation" if KINDS[kind][1] else ""
    assert stored_precision(folders / kind) == f"{KINDS[kind][0]}{nested} (bitsandbytes), expanded when read"


def test_it_is_quantised_anew_where_that_is_asked_for(folders, tmp_path):
    convert_to_hf(folders / "nf4 nested", tmp_path / "int4", quantize="int4", dtype=torch.float32)
    convert_to_hf(folders / "nf4 nested expanded", tmp_path / "twin", quantize="int4", dtype=torch.float32)
    assert (tmp_path / "int4/model.safetensors").read_bytes() == (tmp_path / "twin/model.safetensors").read_bytes()


def test_weights_may_lie_in_storage_of_another_dtype(folders, tmp_path):
    """bnb_4bit_quant_storage, for trainers that shard by dtype."""
    stored = load_file(folders / "nf4/model.safetensors")
    for name in [name for name, tensor in stored.items() if tensor.dtype == torch.uint8 and tensor.ndim == 2]:
        stored[name] = stored[name].flatten().view(torch.bfloat16)[:, None]
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders / "nf4/config.json").read_bytes())
    assert_same(load_model(tmp_path), load_model(folders / "nf4"))


@pytest.mark.slow
def test_a_folder_that_transformers_wrote_is_read(folders, tmp_path):
    from transformers import BitsAndBytesConfig, MllamaForConditionalGeneration

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    plain = folders / "plain"
    make_over(wide_model(), plain, lambda *_: None)
    theirs = MllamaForConditionalGeneration.from_pretrained(
        plain, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(load_model(tmp_path / "theirs"), load_model(folders / "nf4 nested expanded"))


# Refusals

_NAME = "language_model.model.layers.0.self_attn.q_proj"
_STATE = f"{_NAME}.weight.quant_state.bitsandbytes__nf4"


def described(**change) -> torch.Tensor:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 64], "nested_blocksize": 256}
    text = json.dumps({**state, "nested_dtype": "float32", "nested_offset": 0.1, **change})
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{_NAME}.weight.absmax": None}, "q_proj: absmax is missing"),
        ({_STATE: None}, "q_proj: quant_state.bitsandbytes__ is missing"),
        ({f"{_NAME}.weight": None}, "q_proj: codes is missing"),
        ({f"{_NAME}.weight": torch.zeros(9, 1, dtype=torch.uint8)}, "9 bytes of codes, expected 2,048"),
        ({f"{_NAME}.weight.nested_absmax": torch.zeros(3)}, "nested_absmax is [3], expected [1]"),
        ({f"{_NAME}.weight.absmax": torch.zeros(64)}, "absmax is torch.float32"),
        ({_STATE: described(shape=[64, 32])}, "its shape is [64, 32], expected [64, 64]"),
        ({_STATE: described(blocksize=63)}, "gives blocksize 63"),
        ({_STATE: described(dtype="int8")}, "gives dtype 'int8'"),
        ({_STATE: described(nested_offset="x")}, "gives nested_offset 'x'"),
        ({_STATE: torch.zeros(4)}, "its quant_state is no text"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(folders, tmp_path, change, said):
    source = folders / "nf4 nested"
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    stored = load_file(source / "model.safetensors") | change
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, tmp_path / "model.safetensors")
    assert said in refusal(load_model, tmp_path).report


def test_eight_bits_of_bitsandbytes_are_refused_with_the_way_out(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "nf4" / "config.json").read_bytes())
    edit_json(
        tmp_path / "config.json",
        lambda found: found.update(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    )
    error = refusal(read_config, tmp_path)
    assert "quantised by bitsandbytes, which cannot be read" in error.message
    assert "model.dequantize()" in error.message
