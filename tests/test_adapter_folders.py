"""Folders of adapters: heads of text-only models, patterns of layers, and torchtune's names and files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapters.lora import LoRAConfig, adapters_of, add_adapter
from tests.checkpoint_models import edit_json, random_model, refusal, text_config
from vlm import VisionLanguageModel, preset
from vlm.checkpoint import meta, torchtune
from vlm.checkpoint.peft import load_adapter, save_adapter


def adapted(model: VisionLanguageModel, *targets: str) -> VisionLanguageModel:
    for adapter in add_adapter(model, LoRAConfig(rank=2, alpha=2, targets=targets)).values():
        nn.init.normal_(adapter.up)
    return model


@pytest.mark.parametrize("target", ["head", "q_proj"])
def test_an_adapter_of_a_text_only_model_is_saved_and_loaded(tmp_path, target):
    model = adapted(random_model(text_config()), target)
    save_adapter(model, tmp_path)
    again = random_model(text_config())
    name = load_adapter(again, tmp_path)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert set(adapters_of(again, name)) == set(adapters_of(model, "default"))
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["q_proj"], "as ['q_proj']; expected numbers by names of layers"),
        ("q_proj", "as 'q_proj'; expected numbers by names of layers"),
        ({"(q_proj": 2}, "'(q_proj' in {name}: missing ), unterminated subpattern"),
        ({"q{99999999999999999999}": 2}, "in {name}: the repetition number is too large"),
        ({"(.+)+!": 2}, "may take very long to match"),
        ({".*" * 9 + "!": 2}, "may take very long to match"),
        ({"q" * 201: 2}, "may take very long to match"),
    ],
)
def test_patterns_that_are_none_are_refused(tmp_path, name, patterns, said):
    save_adapter(adapted(random_model(), "q_proj"), tmp_path)
    edit_json(tmp_path / "adapter_config.json", lambda settings: settings.update({name: patterns}))
    assert said.format(name=name) in refusal(load_adapter, random_model(), tmp_path).message


@pytest.mark.parametrize(
    "pattern", ["q_proj", r"^.*\.layers\.(?:0|2)\.self_attn\.(q|k)_proj$", "model.language_model.layers.0.*q_proj"]
)
def test_patterns_as_people_write_them_are_read(tmp_path, pattern):
    save_adapter(adapted(random_model(), "decoder.layers.0.attention.q_proj"), tmp_path)
    edit_json(tmp_path / "adapter_config.json", lambda settings: settings.update(alpha_pattern={pattern: 7}))
    model = random_model()
    (adapter,) = adapters_of(model, load_adapter(model, tmp_path)).values()
    assert adapter.config.alpha == 7


def test_an_adapter_that_names_layers_as_mlx_does_is_read(tmp_path):
    save_adapter(adapted(random_model(), "fc1"), tmp_path)
    path, model = tmp_path / "adapter_model.safetensors", random_model()
    tensors = load_file(path)
    save_file({name.replace("model.vision_model", "vision_tower"): each for name, each in tensors.items()}, path)
    assert len(adapters_of(model, load_adapter(model, tmp_path))) == len(tensors) / 2


# torchtune


def write_torchtune(folder, name: str, *layers: str) -> None:
    """Write adapters of rank 1 whose `lora_b` is all ones, for layers of the tiny model that are as wide as it is."""
    width = preset("tiny").decoder.width
    tensors = {f"{layer}.lora_a.weight": torch.ones(1, width) for layer in layers}
    tensors |= {f"{layer}.lora_b.weight": torch.ones(width, 1) for layer in layers}
    torch.save(tensors, folder / name)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 2}))


def test_the_last_of_several_epochs_is_read(tmp_path):
    for number in (0, 2, 9, 10, 11):
        write_torchtune(tmp_path, f"adapter_{number}.pt", f"decoder.layers.{number % 3}.attn.q_proj")
    model = random_model()
    # Of epoch 11: the last self-attention layer, after two that look at images.
    assert set(adapters_of(model, load_adapter(model, tmp_path))) == {"decoder.layers.4.attention.q_proj"}
    write_torchtune(tmp_path, "adapter_model.pt", "decoder.layers.0.attn.q_proj")
    model = random_model()
    assert set(adapters_of(model, load_adapter(model, tmp_path))) == {"decoder.layers.0.attention.q_proj"}


@pytest.mark.parametrize("place", ["0", "3", "9" * 5000])
def test_an_image_layer_where_the_model_has_none_is_refused(tmp_path, place):
    write_torchtune(tmp_path, "adapter_model.pt", f"decoder.layers.{place}.fusion_layer.attn.q_proj")
    assert "2 tensors that are no pair of lora_a and lora_b" in refusal(load_adapter, random_model(), tmp_path).message


def test_an_image_layer_beside_a_self_attention_layer_is_no_self_attention_layer():
    """In the 11B the layer before that of 5 looks at no image."""
    config = preset("11b-vision")
    selves = [place for place in range(config.num_layers) if place not in config.adapter.cross_layers]
    assert torchtune._ours("decoder.layers.5.fusion_layer.attn.q_proj", selves) is None
    assert torchtune._ours("decoder.layers.3.fusion_layer.attn.q_proj", selves) == "decoder.layers.3.attention.q_proj"


def test_metas_names_are_worked_out_once(tmp_path, monkeypatch):
    asked, keys = [], meta.keys
    monkeypatch.setattr(meta, "keys", lambda config: asked.append(config) or keys(config))
    write_torchtune(tmp_path, "adapter_model.pt", *(f"decoder.layers.{place}.attn.q_proj" for place in range(3)))
    load_adapter(random_model(), tmp_path)
    assert len(asked) == 1
