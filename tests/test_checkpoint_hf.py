"""Hugging Face folders: names and shapes of every published size, both generations, settings, what is written."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MllamaForConditionalGeneration,
)

from tests.checkpoint_models import assert_same, edit_json, random_model, refusal, text_config
from tests.image_files import noise_picture
from vision_encoder.preprocess import ImageProcessor
from vlm.checkpoint import empty_model, hf, load_model, read_config, save_model
from vlm.checkpoint.hf_config import write_config
from vlm.config import RopeScaling, preset
from vlm.errors import VLMError

PUBLISHED = {
    "11b-vision": 10_670_220_835,
    "11b-vision-base": 10_642_941_475,
    "90b-vision": 88_593_355_323,
    "90b-vision-base": 88_566_075_963,
    "1b": 1_235_814_400,
    "3b": 3_212_749_824,
    "8b": 8_030_261_248,
    "70b": 70_553_706_496,
}


def transformers_shapes(config) -> dict[str, tuple[int, ...]]:
    """Names (the current generation) and shapes of transformers' model of the settings we would write."""
    settings = AutoConfig.for_model(**write_config(config, torch.bfloat16))
    kind = LlamaForCausalLM if config.vision is None else MllamaForConditionalGeneration
    with torch.device("meta"):
        model = kind(settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.decoder.tied:
        shapes.pop("lm_head.weight", None)
    return shapes


@pytest.mark.parametrize("name", ["tiny", *PUBLISHED])
def test_every_name_and_shape_is_transformers_own(name):
    config = preset(name)
    state = empty_model(config).state_dict()
    keys = [key for key in hf.keys(config) if not key.alias]
    ours = {key.theirs: tuple(key.layout.to_theirs(state[key.ours], config).shape) for key in keys}
    theirs = transformers_shapes(config)
    if config.vision is not None:
        theirs = {hf.published(name, config): shape for name, shape in theirs.items()}
    assert ours == theirs
    assert {key.ours for key in keys} == set(state)
    if name in PUBLISHED:
        assert sum(torch.Size(shape).numel() for shape in ours.values()) == PUBLISHED[name]


@pytest.mark.parametrize("max_shard_bytes", [5e9, 4e5])
def test_transformers_loads_what_is_saved_and_has_the_same_weights(tmp_path, max_shard_bytes):
    model = random_model()
    save_model(model, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    theirs, report = MllamaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = model.state_dict()
    for key in hf.keys(model.config):
        expected = key.layout.to_theirs(state[key.ours], model.config)
        assert torch.equal(theirs.state_dict()[hf.today(key.theirs, model.config)], expected), key.theirs


@pytest.mark.parametrize("name", ["tiny", "default"])
def test_transformers_cuts_a_picture_into_the_same_tiles(tmp_path, name):
    model = random_model(preset(name))
    save_model(model, tmp_path / "out")
    picture = noise_picture((90, 50))
    pixels = ImageProcessor(model.config.vision)(picture).pixels
    found = AutoImageProcessor.from_pretrained(tmp_path / "out")(images=picture, return_tensors="pt")["pixel_values"]
    num_tiles = len(pixels)
    assert found.shape == (1, 1, model.config.vision.max_tiles, *pixels.shape[1:])
    # One grey level: transformers rounds resized pixels otherwise.
    assert (found[0, 0, :num_tiles] - pixels).abs().max() < 0.02
    assert not found[0, 0, num_tiles:].any()


def test_a_text_only_model_leaves_no_settings_for_pictures(tmp_path):
    save_model(random_model(), tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    save_model(random_model(text_config()), tmp_path / "out")
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_a_text_only_model(tmp_path, tied):
    model = random_model(text_config(tied=tied))
    save_model(model, tmp_path / "out")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(theirs.model.layers[1].mlp.up_proj.weight, model.decoder.layers[1].mlp.up_proj.weight)
    assert theirs.lm_head.weight.equal((model.decoder.embedding if tied else model.decoder.head).weight)
    ids = torch.arange(7)[None]
    assert torch.allclose(theirs(ids).logits, model(ids), atol=1e-4, rtol=1e-4)


def test_what_transformers_saves_loads(tmp_path):
    model = random_model()
    save_model(model, tmp_path / "ours")
    MllamaForConditionalGeneration.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert "rope_parameters" in settings["text_config"]
    loaded = load_model(tmp_path / "theirs")
    assert loaded.config == model.config
    assert_same(loaded, model)


@pytest.mark.parametrize("config", [preset("tiny"), preset("default"), text_config(), text_config(tied=True)])
@pytest.mark.parametrize("max_shard_bytes", [5e9, 1e5])
def test_saved_and_loaded_is_the_same(tmp_path, config, max_shard_bytes):
    model = random_model(config)
    save_model(model, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    loaded = load_model(tmp_path / "out")
    assert loaded.config == config
    assert not loaded.training
    assert_same(loaded, model)


def test_the_current_generation_of_names_loads_too(tmp_path):
    model = random_model()
    save_model(model, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    current = {hf.today(name, model.config): tensor for name, tensor in state.items()}
    assert "model.language_model.embed_tokens.weight" in current
    assert "lm_head.weight" in current
    save_file(current, tmp_path / "out" / "model.safetensors")
    assert_same(load_model(tmp_path / "out"), model)


def test_the_two_generations_together_are_refused(tmp_path):
    save_model(random_model(), tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    state["lm_head.weight"] = state["language_model.lm_head.weight"].clone()
    save_file(state, tmp_path / "out" / "model.safetensors")
    assert "twice" in refusal(load_model, tmp_path / "out").message


def test_the_library_reads_the_same_file(tmp_path):
    model = random_model()
    save_model(model, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert state["multi_modal_projector.bias"].equal(model.projector.bias)
    assert len(state) == len(hf.keys(model.config))


def test_a_stored_second_copy_of_a_tied_head_is_compared(tmp_path):
    model = random_model(text_config(tied=True))
    save_model(model, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    state = load_file(path)
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}, path)
    assert_same(load_model(tmp_path / "out"), model)
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1}, path)
    assert "tied" in refusal(load_model, tmp_path / "out").message


def test_buffers_of_old_versions_are_passed_over(tmp_path):
    model = random_model(text_config())
    save_model(model, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path)
    assert_same(load_model(tmp_path / "out"), model)


def test_dtype_is_the_checkpoints_own_unless_asked(tmp_path):
    model = random_model().bfloat16()
    save_model(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path / "out").projector.bias.dtype == torch.bfloat16
    wide = load_model(tmp_path / "out", dtype=torch.float32)
    assert_same(wide, {name: tensor.float() for name, tensor in model.state_dict().items()})
    edit_json(tmp_path / "out" / "config.json", lambda c: c.update(torch_dtype="float16"))
    assert load_model(tmp_path / "out").projector.bias.dtype == torch.float16

    def forget(settings):
        for part in (settings, settings["text_config"], settings["vision_config"]):
            part.pop("torch_dtype")

    edit_json(tmp_path / "out" / "config.json", forget)
    assert load_model(tmp_path / "out").projector.bias.dtype == torch.bfloat16


def test_dtypes_that_are_none_are_refused(tmp_path):
    save_model(random_model(), tmp_path / "out")
    with pytest.raises(VLMError, match=r"give a torch\.dtype"):
        load_model(tmp_path / "out", dtype="huge")
    edit_json(tmp_path / "out" / "config.json", lambda c: c.update(torch_dtype="int8"))
    assert "torch_dtype 'int8'" in refusal(load_model, tmp_path / "out").message


def test_the_encoder_looks_at_its_tables_after_loading(tmp_path):
    model = random_model()
    with torch.no_grad():
        model.encoder.tile_position_before.table[1, 2] += 1
    save_model(model, tmp_path / "out")
    assert not load_model(tmp_path / "out").encoder.missing_tiles_equal


@pytest.mark.full
def test_loading_needs_none_of_torchs_compiler(tmp_path):
    """Initial weights on the meta device would import it: 150 MB and seconds."""
    save_model(random_model(), tmp_path / "out")
    code = (
        "import sys, vlm.checkpoint; before = len(sys.modules); "
        f"vlm.checkpoint.load_model({str(tmp_path / 'out')!r}); assert len(sys.modules) - before < 100"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def write_settings(folder, config=None, change=lambda settings: None):
    folder.mkdir(exist_ok=True)
    settings = write_config(config or preset("tiny"), torch.float32)
    change(settings)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("name", [*PUBLISHED, "tiny", "default", "70b"])
def test_settings_survive_writing(tmp_path, name):
    assert read_config(write_settings(tmp_path / "out", preset(name))) == preset(name)


def test_both_spellings_of_rope_are_read(tmp_path):
    scaling = RopeScaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_context=64)

    def modern(settings):
        text = settings["text_config"]
        text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}

    for change in (lambda settings: None, modern):
        decoder = read_config(write_settings(tmp_path / "out", change=change)).decoder
        assert decoder.rope_scaling == scaling
        assert decoder.rope_theta == 500000.0


def test_what_the_settings_leave_out_has_transformers_default(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama", "text_config": {}, "vision_config": {}}))
    config = read_config(tmp_path)
    expected = preset("11b-vision-base")
    assert config.vision == expected.vision
    assert config.adapter == expected.adapter
    assert config.decoder.mlp_dim == expected.decoder.mlp_dim


def test_settings_that_do_not_change_the_computation_are_passed_over(tmp_path):
    def change(settings):
        settings.update(_name_or_path="x", transformers_version="9", pad_token_id=7)
        settings["text_config"].update(use_cache=False, initializer_range=1, pretraining_tp=1, attention_dropout=0.5)

    assert read_config(write_settings(tmp_path / "out", change=change)) == preset("tiny")


REFUSED = {
    "model_type 'llava'": lambda c: c.update(model_type="llava"),
    "attention_bias to True": lambda c: c["text_config"].update(attention_bias=True),
    "mlp_bias to True": lambda c: c["text_config"].update(mlp_bias=True),
    "hidden_act to 'gelu'": lambda c: c["text_config"].update(hidden_act="gelu"),
    "hidden_act to 'quick_gelu'": lambda c: c["vision_config"].update(hidden_act="quick_gelu"),
    "num_channels to 1": lambda c: c["vision_config"].update(num_channels=1),
    "norm_eps to 1e-06": lambda c: c["vision_config"].update(norm_eps=1e-6),
    "quantization_config to dict": lambda c: c.update(quantization_config={"bits": 4}),
    "sliding_window to 128": lambda c: c["text_config"].update(sliding_window=128),
    "head_dim is 16": lambda c: c["text_config"].update(head_dim=16),
    "rope_type is 'yarn'": lambda c: c["text_config"]["rope_scaling"].update(rope_type="yarn"),
    "the RoPE settings are [1]": lambda c: c["text_config"].update(rope_scaling=[1]),
    "factor is None": lambda c: c["text_config"]["rope_scaling"].pop("factor"),
    "rope_theta is 'x'": lambda c: c["text_config"].update(rope_theta="x"),
    "supported_aspect_ratios is not": lambda c: c["vision_config"]["supported_aspect_ratios"].reverse(),
    "vision_output_dim is 7": lambda c: c["vision_config"].update(vision_output_dim=7),
    "image_token_index is 5": lambda c: c.update(image_token_index=5),
    "hidden_size is 1.5": lambda c: c["text_config"].update(hidden_size=1.5),
    "hidden_size is True": lambda c: c["text_config"].update(hidden_size=True),
    "num_hidden_layers is 1000000": lambda c: c["text_config"].update(num_hidden_layers=1000000),
    "num_hidden_layers is 2; it must be at least 3": lambda c: c["text_config"].update(num_hidden_layers=2),
    "cross_attention_layers ends at 9": lambda c: c["text_config"].update(cross_attention_layers=[1, 9]),
    "cross_attention_layers is 3": lambda c: c["text_config"].update(cross_attention_layers=3),
    "cross_attention_layers is [3, 1]": lambda c: c["text_config"].update(cross_attention_layers=[3, 1]),
    "intermediate_layers_indices is [2, 0]": lambda c: c["vision_config"].update(intermediate_layers_indices=[2, 0]),
    "text_config is 7": lambda c: c.update(text_config=7),
    "tie_word_embeddings is 'no'": lambda c: c["text_config"].update(tie_word_embeddings="no"),
    "tie_word_embeddings is true": lambda c: c["text_config"].update(tie_word_embeddings=True),
    "num_attention_heads 3 heads of even width": lambda c: c["text_config"].update(num_attention_heads=3),
    "hidden_size 32 must split": lambda c: c["text_config"].update(num_attention_heads=3),
    "4 is no multiple of num_key_value_heads 3": lambda c: c["text_config"].update(num_key_value_heads=3),
    "intermediate_size is 0": lambda c: c["text_config"].update(intermediate_size=0),
    "attention_heads is 0": lambda c: c["vision_config"].update(attention_heads=0),
    "image_size 28 is no multiple of patch_size 5": lambda c: c["vision_config"].update(patch_size=5),
}


@pytest.mark.parametrize("said", REFUSED)
def test_settings_that_cannot_be_computed_are_refused_by_name(tmp_path, said):
    assert said in refusal(read_config, write_settings(tmp_path / "out", change=REFUSED[said])).message


def test_square_sizes_may_be_lists(tmp_path):
    folder = write_settings(tmp_path / "out", change=lambda c: c["vision_config"].update(image_size=[28, 28]))
    assert read_config(folder) == preset("tiny")


def test_a_folder_of_nothing_is_refused(tmp_path):
    assert "neither config.json nor params.json" in refusal(read_config, tmp_path).message
    assert "neither model.safetensors" in refusal(load_model, write_settings(tmp_path / "out")).message
