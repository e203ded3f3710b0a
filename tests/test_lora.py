"""Low-rank adapters: what they compute, how they are merged and stacked, and PEFT's folders in both directions."""

import copy
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from adapters.lora import (
    AdapterError,
    LoRAConfig,
    adapter_names,
    adapters_of,
    add_adapter,
    linear_layers,
    merge,
    remove,
    set_strength,
    unmerge,
)
from tests.conftest import random_model
from tests.nearness import difference
from tests.oracles import hf, ours
from tests.oracles.cases import CONFIGS, build_case
from tests.oracles.weights import random_hf_state
from vlm import VLM, GenerationConfig, Tokenizer, VLMError
from vlm.checkpoint.peft import load_adapter, save_adapter
from vlm.cli import main
from vlm.config import preset

CASE = build_case(CONFIGS["default"], "one_tile_middle")
TOLERANCE = 1e-5
"""Sums in another order, in float32, of weights whose adapters are as large as they are."""


def open_up(model: nn.Module, name: str = "default", seed: int = 1) -> None:
    """Draw both matrices of every adapter, so that they change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters_of(model, name).values():
            for matrix in (adapter.down, adapter.up):
                matrix.copy_(0.3 * torch.randn(matrix.shape, generator=generator))


def adapted(config: LoRAConfig | None = None, seed: int = 1) -> nn.Module:
    model = ours.build(*random_hf_state(CONFIGS["default"]))
    add_adapter(model, config or LoRAConfig(rank=4, alpha=8, targets=("*_proj", "fc1", "projector")))
    open_up(model, seed=seed)
    return model


@pytest.fixture(scope="module")
def plain():
    return ours.build(*random_hf_state(CONFIGS["default"]))


def test_a_fresh_adapter_changes_nothing(plain):
    model = copy.deepcopy(plain)
    add_adapter(model, LoRAConfig(targets=("*_proj", "fc1", "fc2")))
    assert torch.equal(ours.logits(model, CASE), ours.logits(plain, CASE))
    open_up(model)
    assert difference(ours.logits(model, CASE), ours.logits(plain, CASE)) > 1e-2


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_equals_unmerged_and_unmerging_gives_every_bit_back(plain, rslora):
    model = adapted(LoRAConfig(rank=4, alpha=3, rslora=rslora, targets=tuple(linear_layers(plain))))
    apart = ours.logits(model, CASE)
    merge(model)
    assert difference(ours.logits(model, CASE), apart) < TOLERANCE
    unmerge(model)
    own = {name: weight for name, weight in model.state_dict().items() if ".lora." not in name}
    assert all(torch.equal(weight, own.pop(name)) for name, weight in plain.state_dict().items())
    assert not own
    assert torch.equal(ours.logits(model, CASE), apart)


def test_merging_for_good_leaves_a_plain_model(plain):
    model = adapted()
    apart = ours.logits(model, CASE)
    merge(model, keep_original=False)
    assert set(model.state_dict()) == set(plain.state_dict())
    assert difference(ours.logits(model, CASE), apart) < TOLERANCE


def test_the_scale_of_an_adapter_is_that_of_the_papers():
    assert LoRAConfig(rank=16, alpha=8).scale == 0.5
    assert LoRAConfig(rank=16, alpha=8, rslora=True).scale == 2.0


def test_stacked_adapters_add_up_by_their_strength():
    layer = nn.Sequential(nn.Linear(6, 5))
    for name in ("a", "b"):
        add_adapter(layer, LoRAConfig(rank=2, alpha=2, targets=("0",)), name=name)
        open_up(layer, name, seed=len(adapter_names(layer)))
    set_strength(layer, "b", -0.5)
    x = torch.randn(3, 6)
    first, second = (adapters_of(layer, name)["0"] for name in ("a", "b"))
    weight = layer[0].weight + first.up @ first.down - 0.5 * second.up @ second.down
    assert torch.allclose(layer(x), nn.functional.linear(x, weight, layer[0].bias), atol=1e-6)
    remove(layer, "a")
    remove(layer, "b")
    assert adapter_names(layer) == []
    assert list(layer.state_dict()) == ["0.weight", "0.bias"]


def test_a_layer_of_any_class_can_be_adapted():
    class Halved(nn.Module):
        """Stands for a quantised layer: its weight is made anew each time, and its forward pass is its own."""

        in_features, out_features = 4, 3

        def __init__(self):
            super().__init__()
            self.register_buffer("codes", torch.ones(3, 4, dtype=torch.int8))

        @property
        def weight(self):
            return self.codes.float() / 2

        def forward(self, x):
            return nn.functional.linear(x, self.weight)

    model = nn.Sequential(Halved())
    add_adapter(model, LoRAConfig(rank=1, alpha=1, targets=("0",)))
    adapter = adapters_of(model, "default")["0"]
    nn.init.ones_(adapter.up)
    x = torch.randn(2, 4)
    assert torch.allclose(model(x), x.sum(-1, keepdim=True) / 2 + x @ adapter.down.T)
    with pytest.raises(AdapterError, match="quantised"):
        merge(model)


def test_dropout_hides_inputs_from_the_adapter_in_training_alone():
    layer = nn.Sequential(nn.Linear(64, 1, bias=False))
    add_adapter(layer, LoRAConfig(rank=1, alpha=1, dropout=0.5, targets=("0",)))
    open_up(layer)
    x = torch.ones(1, 64)
    expected = nn.functional.linear(x, layer[0].weight + adapters_of(layer, "default")["0"].delta())
    assert not torch.allclose(layer.train()(x), expected)
    assert torch.allclose(layer.eval()(x), expected, atol=1e-5)


def test_targets_are_ends_of_names_or_whole_ones(plain):
    def chosen(*targets):
        model = copy.deepcopy(plain)
        return set(add_adapter(model, LoRAConfig(targets=targets)))

    every = set(linear_layers(plain))
    assert chosen("q_proj") == {name for name in every if name.endswith("q_proj")}
    assert chosen("decoder.*.q_proj", "projector") == {
        name for name in every if name == "projector" or (name.startswith("decoder") and name.endswith("q_proj"))
    }
    with pytest.raises(AdapterError, match="did you mean 'q_proj'"):
        chosen("q_prj")


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("decoder.*.k_proj", "fc2", "projector")])
def test_a_saved_adapter_is_loaded_bit_for_bit(tmp_path, plain, targets):
    model = adapted(LoRAConfig(rank=3, alpha=5, dropout=0.1, rslora=True, targets=targets))
    adapters = adapters_of(model, "default")
    # One layer of another rank, as PEFT's rank_pattern allows.
    first = next(iter(adapters.values()))
    first.down, first.up = nn.Parameter(first.down[:2].clone()), nn.Parameter(first.up[:, :2].clone())
    first.config = LoRAConfig(rank=2, alpha=7, dropout=0.1, rslora=True)
    save_adapter(model, tmp_path / "adapter")
    again = copy.deepcopy(plain)
    load_adapter(again, tmp_path / "adapter")
    assert set(adapters_of(again, "adapter1")) == set(adapters)
    assert torch.equal(ours.logits(again, CASE), ours.logits(model, CASE))


def test_files_of_either_generation_of_names_are_read(tmp_path, plain):
    model = adapted()
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    names = {
        name: name.replace("model.language_model.", "language_model.model.")
        .replace("model.vision_model.", "vision_model.")
        .replace("model.multi_modal_projector", "multi_modal_projector")
        .replace("base_model.language_model", "base_model.model.language_model")
        .replace("base_model.vision_model", "base_model.model.vision_model")
        .replace("base_model.multi", "base_model.model.multi")
        for name in tensors
    }
    assert all(old != new for old, new in names.items())
    save_file({names[name]: tensor for name, tensor in tensors.items()}, path)
    again = copy.deepcopy(plain)
    load_adapter(again, tmp_path)
    assert torch.equal(ours.logits(again, CASE), ours.logits(model, CASE))


def broken_adapter(folder: Path, change) -> Path:
    """Write a good adapter and let `change(settings, tensors)` spoil it."""
    save_adapter(adapted(LoRAConfig(rank=2, targets=("q_proj",))), folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    change(settings, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _without_half(settings, tensors):
    tensors.pop(next(name for name in tensors if "lora_B" in name))


def _wider(settings, tensors):
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = torch.cat([tensors[name]] * 2, dim=1)


def _other_layer(settings, tensors):
    for name in [name for name in tensors if "layers.0.self_attn" in name and "language" in name]:
        tensors[name.replace("layers.0", "layers.77")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda settings, tensors: settings.update(use_dora=True), "use_dora"),
        (lambda settings, tensors: settings.update(bias="all"), "biases"),
        (lambda settings, tensors: settings.update(peft_type="IA3"), "IA3"),
        (lambda settings, tensors: settings.update(init_lora_weights="pissa"), "pissa"),
        (lambda settings, tensors: settings.update(modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda settings, tensors: settings.update(lora_alpha="8"), "lora_alpha"),
        (lambda settings, tensors: settings.update(r=16), "rank 2"),
        (_without_half, "no pair"),
        (_wider, "another model's"),
        (_other_layer, "layers.77"),
    ],
)
def test_what_is_no_plain_adapter_of_this_model_is_refused(tmp_path, plain, change, words):
    model = copy.deepcopy(plain)
    with pytest.raises(VLMError, match=words) as caught:
        load_adapter(model, broken_adapter(tmp_path, change))
    assert caught.value.code == "checkpoint_invalid"
    assert len(caught.value.message) <= 300
    assert adapter_names(model) == []


# The public API and the command


@pytest.fixture(scope="module")
def pipeline_adapter(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny checkpoint, and an adapter whose encoder and decoder both say something else."""
    folder = tmp_path_factory.mktemp("adapted")
    model = random_model(preset("tiny"))
    VLM(model, Tokenizer.bytes_only()).save_pretrained(folder / "model")
    add_adapter(model, LoRAConfig(rank=4, alpha=2, targets=("*_proj", "fc1")))
    open_up(model)
    save_adapter(model, folder / "adapter")
    return folder / "model", folder / "adapter"


def test_a_model_that_carries_an_adapter_is_not_saved_without_it(pipeline_adapter, tmp_path):
    model = VLM.from_pretrained(pipeline_adapter[0], device="cpu")
    model.load_adapter(pipeline_adapter[1])
    with pytest.raises(VLMError, match="merge them first") as caught:
        model.save_pretrained(tmp_path / "out")
    assert caught.value.code == "invalid_request"
    merge(model.model, keep_original=False)
    model.save_pretrained(tmp_path / "out")


def test_the_public_model_takes_an_adapter_and_forgets_the_pictures_it_had_encoded(pipeline_adapter):
    source, folder = pipeline_adapter
    vlm = VLM.from_pretrained(source)
    picture = torch.arange(3 * 30 * 40, dtype=torch.uint8).reshape(3, 30, 40)
    question = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}]
    before = vlm.logits(question)
    encoded = vlm.encode_image(picture)
    vlm.load_adapter(folder)
    after = vlm.logits(question)
    assert difference(after, before) > 1e-2
    fresh = VLM.from_pretrained(source)
    fresh.load_adapter(folder)
    merge(fresh.model)
    assert difference(fresh.logits(question), after) < TOLERANCE
    question[0]["content"][0]["image"] = encoded
    with pytest.raises(VLMError, match="another model"):
        vlm.logits(question)
    vlm.load_adapter(folder, strength=-1)
    question[0]["content"][0]["image"] = picture
    assert difference(vlm.logits(question), before) < TOLERANCE


def test_ask_answers_with_an_adapter(pipeline_adapter, tmp_path):
    source, folder = pipeline_adapter
    picture = torch.randint(256, (30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    Image.fromarray(picture).save(tmp_path / "a.png")
    arguments = ["ask", str(tmp_path / "a.png"), "?", "--model", str(source), "--max-new-tokens", "6"]
    adapted_run = CliRunner().invoke(main, [*arguments, "--adapter", str(folder)])
    vlm = VLM.from_pretrained(source)
    plain_reply = vlm.answer(picture, "?", config=GenerationConfig(max_new_tokens=6)).text
    vlm.load_adapter(folder)
    reply = vlm.answer(picture, "?", config=GenerationConfig(max_new_tokens=6)).text
    assert adapted_run.exit_code == 0, adapted_run.output
    assert adapted_run.stdout.rstrip("\n") == reply.rstrip("\n") != plain_reply


@pytest.mark.parametrize("command", ["ask", "caption", "chat"])
def test_an_adapter_that_is_none_is_refused_before_the_model_is_read(command, tmp_path):
    arguments = [command, *(["a.png", "?"] if command == "ask" else ["a.png"] if command == "caption" else [])]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png") if each == "a.png" else each for each in arguments]
    result = CliRunner().invoke(main, [*arguments, "--model", str(tmp_path), "--adapter", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "there is no folder none; give the folder of an adapter" in result.stderr


def test_ask_adds_adapters_up(pipeline_adapter, tmp_path):
    """Given twice the adapter counts twice."""
    source, folder = pipeline_adapter
    Image.new("RGB", (40, 30), (9, 90, 200)).save(tmp_path / "a.png")
    arguments = ["ask", str(tmp_path / "a.png"), "?", "--model", str(source), "--max-new-tokens", "6"]
    stacked = CliRunner().invoke(main, [*arguments, "--adapter", str(folder), "--adapter", str(folder)])
    vlm = VLM.from_pretrained(source)
    vlm.load_adapter(folder, strength=2.0)
    reply = vlm.answer(tmp_path / "a.png", "?", config=GenerationConfig(max_new_tokens=6)).text
    assert stacked.exit_code == 0, stacked.output
    assert stacked.stdout.rstrip("\n") == reply.rstrip("\n")


# torchtune's files

# A layer there, the same layer here. Source: torchtune models/llama3_2_vision/_convert_weights.py.
TORCHTUNE = {
    "decoder.layers.0.attn.q_proj": "decoder.layers.0.attention.q_proj",
    "decoder.layers.1.attn.k_proj": "decoder.layers.2.attention.k_proj",
    "decoder.layers.3.attn.output_proj": "decoder.layers.5.attention.o_proj",
    "decoder.layers.1.fusion_layer.attn.q_proj": "decoder.layers.1.attention.q_proj",
    "decoder.layers.3.fusion_layer.mlp.w2": "decoder.layers.4.mlp.down_proj",
    "decoder.layers.2.mlp.w1": "decoder.layers.3.mlp.gate_proj",
    "decoder.layers.2.mlp.w3": "decoder.layers.3.mlp.up_proj",
    "decoder.output": "decoder.head",
    "encoder.clip.layers.1.attn.v_proj": "encoder.local_layers.1.attention.v_proj",
    "encoder.clip.layers.0.mlp.w1": "encoder.local_layers.0.fc1",
    "encoder.projection.layers.1.mlp.w2": "encoder.global_layers.1.fc2",
    "encoder.projection.output": "projector",
}


def write_torchtune(model: nn.Module, folder: Path) -> None:
    tensors = {}
    for theirs, place in TORCHTUNE.items():
        adapter = adapters_of(model, "default")[place]
        up = adapter.up.detach()
        if theirs in ("decoder.layers.0.attn.q_proj", "decoder.layers.1.attn.k_proj"):
            # Neighbouring rows of a head are turned together there.
            heads = 4 if "q_proj" in theirs else 2
            up = up.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        tensors |= {f"{theirs}.lora_a.weight": adapter.down.detach(), f"{theirs}.lora_b.weight": up.contiguous()}
    torch.save(tensors, folder / "adapter_model.pt")


def test_an_adapter_of_torchtunes_gives_the_same_logits(tmp_path, plain):
    model = adapted(LoRAConfig(rank=4, alpha=8, targets=tuple(TORCHTUNE.values())))
    write_torchtune(model, tmp_path)
    again = copy.deepcopy(plain)
    with pytest.raises(VLMError, match="does not say how strong the adapter is; write beside it adapter_config"):
        load_adapter(again, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 8}')
    load_adapter(again, tmp_path)
    assert set(adapters_of(again, "adapter1")) == set(TORCHTUNE.values())
    assert torch.equal(ours.logits(again, CASE), ours.logits(model, CASE))
    torch.save({"decoder.layers.9.attn.q_proj.lora_a.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.pt")
    with pytest.raises(VLMError, match="1 tensors that are no pair of lora_a and lora_b of this model"):
        load_adapter(copy.deepcopy(plain), tmp_path)


# Beside the library


def peft_model(**settings):
    peft = pytest.importorskip("peft", reason="not run: peft")
    config, state = random_hf_state(CONFIGS["default"])
    torch.manual_seed(0)
    return peft.get_peft_model(hf.repaired(config, state), peft.LoraConfig(**settings))


SETTINGS = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["k_proj", "o_proj", "gate_proj", "fc1"]},
    {"r": 4, "target_modules": ["lm_head", "patch_embedding", "fc2"]},
    {
        "r": 4,
        "target_modules": ["down_proj", "up_proj", "multi_modal_projector"],
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"layers.2.mlp.up_proj": 1},
    },
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_adapter_that_peft_saved_gives_the_same_logits(tmp_path, plain, settings):
    theirs = peft_model(init_lora_weights=False, **settings)
    theirs.save_pretrained(tmp_path)
    model = copy.deepcopy(plain)
    load_adapter(model, tmp_path)
    expected = hf.logits(theirs.base_model.model, CASE)
    assert difference(ours.logits(plain, CASE), expected) > 1e-3
    assert difference(ours.logits(model, CASE), expected) < TOLERANCE


@pytest.mark.parametrize("settings", SETTINGS)
def test_peft_loads_what_we_write(tmp_path, plain, settings):
    peft = pytest.importorskip("peft", reason="not run: peft")
    peft_model(init_lora_weights=False, **settings).save_pretrained(tmp_path / "theirs")
    model = copy.deepcopy(plain)
    name = load_adapter(model, tmp_path / "theirs")
    save_adapter(model, tmp_path / "ours", name)
    loaded = peft.PeftModel.from_pretrained(hf.repaired(*random_hf_state(CONFIGS["default"])), tmp_path / "ours").eval()
    assert difference(hf.logits(loaded.base_model.model, CASE), ours.logits(model, CASE)) < TOLERANCE
