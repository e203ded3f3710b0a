"""Folders that MLX quantised, in mlx-vlm's arrangement of `mllama`."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_models import assert_same, edit_json, refusal
from tests.conversations import MIXED
from tests.foreign_folders import difference, is_linear, make_over, wide_model
from vlm.checkpoint import convert_to_hf, load_model, read_config, stored_precision

mx = pytest.importorskip("mlx.core", reason="not run: mlx")
# bits, group size, dtype
KINDS = {"4 bits": (4, 64, mx.float32), "8 bits": (8, 32, mx.float32), "4 bits, bfloat16": (4, 32, mx.bfloat16)}


def named(name: str) -> str:
    """Source: mlx-vlm models/mllama/mllama.py, `sanitize`."""
    return name.replace("vision_model", "vision_tower")


def quantize(name: str, tensor: torch.Tensor, bits: int, size: int, dtype):
    """As mlx-vlm's convert does, also the head, the embedding and, as its early versions, the vision tower."""
    array = mx.array(tensor.numpy()).astype(dtype)
    if name.endswith("patch_embedding.weight"):
        array = array.transpose(0, 2, 3, 1)
    elif is_linear(name) or name.endswith(("lm_head.weight", "embed_tokens.weight")):
        parts = mx.quantize(array, group_size=size, bits=bits)
        values = mx.dequantize(*(part if part.dtype == mx.uint32 else part.astype(mx.float32) for part in parts),
                               group_size=size, bits=bits)  # fmt: skip
        module = named(name).removesuffix("weight")
        stored = dict(zip((f"{module}weight", f"{module}scales", f"{module}biases"), parts, strict=True))
        return stored, torch.from_numpy(np.array(values))
    return {named(name): array}, torch.from_numpy(np.array(array.astype(mx.float32))).view_as(tensor) if (
        not name.endswith("patch_embedding.weight")
    ) else tensor.to(torch.bfloat16 if dtype == mx.bfloat16 else torch.float32).float()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlx")

    def save(stored: dict, path) -> None:
        mx.save_safetensors(str(path), stored, metadata={"format": "mlx"})

    for name, (bits, size, dtype) in KINDS.items():
        settings = {"group_size": size, "bits": bits, "mode": "affine"}
        make_over(
            wide_model(),
            folder / name,
            lambda *given, how=(bits, size, dtype): quantize(*given, *how),
            save,
            quantization=settings,
            quantization_config=settings,
        )
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_mlx_gives_what_its_expanded_weights_do(folders, kind):
    assert difference(folders / kind, folders / f"{kind} expanded", MIXED[:2], dtype=torch.float32) <= 1e-3
    bits, size, _ = KINDS[kind]
    assert stored_precision(folders / kind) == f"{bits} bits in groups of {size} (MLX), expanded when read"


def test_it_is_quantised_anew_where_that_is_asked_for(folders, tmp_path):
    loaded = load_model(folders / "4 bits", quantize="int4", group_size=32)
    convert_to_hf(folders / "4 bits", tmp_path / "out", quantize="int4", group_size=32)
    assert_same(load_model(tmp_path / "out"), loaded)


_NAME = "language_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{_NAME}.biases": None}, "q_proj: biases is missing"),
        ({f"{_NAME}.weight": None}, "q_proj: weight is missing"),
        ({f"{_NAME}.weight": torch.zeros(64, 6, dtype=torch.uint32)}, "q_proj: 3 bits, expected 2, 4, 8"),
        ({f"{_NAME}.weight": torch.zeros(64, 8)}, "q_proj: torch.float32 [64, 8] for [64, 64]"),
        ({f"{_NAME}.scales": torch.zeros(64, 1, dtype=torch.uint8)}, "scales are torch.uint8"),
        ({f"{_NAME}.biases": torch.zeros(64, 2)}, "scales [64, 1] and biases [64, 2] do not divide [64, 64]"),
    ],
)
def test_parts_that_do_not_fit_are_named(folders, tmp_path, change, said):
    (tmp_path / "config.json").write_bytes((folders / "4 bits" / "config.json").read_bytes())
    stored = load_file(folders / "4 bits" / "model.safetensors") | change
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, tmp_path / "model.safetensors")
    assert said in refusal(load_model, tmp_path).report


@pytest.mark.parametrize("where", ["quantization", "layer"])
def test_other_modes_of_mlx_are_refused_by_name(folders, tmp_path, where):
    (tmp_path / "config.json").write_bytes((folders / "4 bits" / "config.json").read_bytes())
    found = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    if where == "layer":
        found = {"group_size": 64, "bits": 4, "mode": "affine", "language_model.lm_head": found}
    edit_json(tmp_path / "config.json", lambda settings: settings.update(quantization=found, quantization_config=found))
    assert "quantised by MLX as mxfp4, which cannot be read" in refusal(read_config, tmp_path).message
