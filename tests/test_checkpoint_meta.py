"""Meta's folders: names and shapes of the real classes, rotary order, position tables, files of several processes."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from fairscale.nn.model_parallel import layers
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer
from llama_models.llama3.multimodal.model import CrossAttentionTransformer
from transformers import MllamaForConditionalGeneration

from adapters.config import AdapterConfig
from tests.checkpoint_models import (
    assert_same,
    edit_json,
    eight_heads,
    meta_split_axes,
    random_model,
    refusal,
    text_config,
    write_split,
)
from tests.oracles import hf, ours
from tests.oracles import meta as oracle
from tests.oracles.cases import CONFIGS, build_case
from tests.oracles.meta_weights import meta_state
from tests.oracles.weights import random_hf_state
from vlm.checkpoint import empty_model, load_model, meta, read_config, save_model
from vlm.checkpoint.meta_config import write_config
from vlm.config import preset
from vlm.errors import VLMError

PUBLISHED = {"11b-vision": 10_629_184_035, "90b-vision": 88_552_318_523}


@pytest.fixture(scope="module", autouse=True)
def model_parallel():
    """Meta's layers ask for their group when they are built."""
    oracle.start_model_parallel()


@pytest.fixture
def weightless(monkeypatch):
    """Let Meta's classes be built at full size: fairscale's layers make their weights without values."""

    class Torch(SimpleNamespace):
        def __getattr__(self, name):
            return getattr(torch, name)

    shim = Torch(Tensor=lambda *sizes: torch.empty(*sizes, device="meta"))
    monkeypatch.setattr(layers, "torch", shim)

    def build(kind, **args):
        with torch.device("meta"):
            return kind(ModelArgs(**args, max_batch_size=1, max_seq_len=8))

    return build


def meta_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def our_shapes(config) -> dict[str, tuple[int, ...]]:
    state = empty_model(config).state_dict()
    return {key.theirs: tuple(key.layout.to_theirs(state[key.ours], config).shape) for key in meta.keys(config)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_name_and_shape_is_metas_own(weightless, name):
    params = write_config(preset(name), torch.bfloat16)
    params.pop("sightline")
    shapes = meta_shapes(weightless(CrossAttentionTransformer, **params))
    assert our_shapes(preset(name)) == shapes
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["1b", "3b", "8b"])
def test_every_name_and_shape_of_text_only_models_is_metas_own(weightless, name):
    params = write_config(preset(name), torch.bfloat16)
    params.pop("sightline")
    assert our_shapes(preset(name)) == meta_shapes(weightless(Transformer, **params))


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_are_divided_as_metas_modules_divide_them(weightless, name):
    params = write_config(preset(name), torch.bfloat16)
    axes = meta_split_axes(weightless(CrossAttentionTransformer, **params))
    assert {key.theirs: key.split for key in meta.keys(preset(name))} == axes


def hf_oracle(model, folder) -> MllamaForConditionalGeneration:
    save_model(model, folder)
    return MllamaForConditionalGeneration.from_pretrained(folder)


def test_what_is_saved_is_what_the_oracle_makes_of_the_hugging_face_weights(tmp_path):
    model = random_model()
    save_model(model, tmp_path / "meta", format="meta")
    theirs = hf_oracle(model, tmp_path / "hf")
    expected = meta_state(theirs.config, theirs.state_dict())
    found = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    assert_same(found, expected)


@pytest.mark.parametrize(
    "config", [preset("tiny"), preset("default"), eight_heads(), text_config(), text_config(tied=True)]
)
def test_saved_and_loaded_is_the_same(tmp_path, config):
    model = random_model(config)
    save_model(model, tmp_path / "out", format="meta")
    loaded = load_model(tmp_path / "out")
    # How pictures are looked at has no place in Meta's settings.
    assert loaded.config == config.exact()
    assert_same(loaded, model)


def test_there_and_back_again_is_bit_equal(tmp_path):
    model = random_model().bfloat16()
    save_model(model, tmp_path / "hf")
    save_model(load_model(tmp_path / "hf"), tmp_path / "meta", format="meta")
    save_model(load_model(tmp_path / "meta"), tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_files_of_any_number_of_processes_give_the_whole(tmp_path, count):
    config = eight_heads()
    model = random_model(config)
    save_model(model, tmp_path / "whole", format="meta")
    whole = torch.load(tmp_path / "whole" / "consolidated.00.pth", weights_only=True)
    axes = meta_split_axes(oracle.SmallTransformer(hf_oracle(model, tmp_path / "hf").config))
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "params.json").write_text((tmp_path / "whole" / "params.json").read_text())
    write_split(whole, axes, count, folder)
    assert_same(load_model(folder), model)
    wide = load_model(folder, dtype=torch.float64)
    assert_same(wide, {name: tensor.double() for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("count", [2, 8])
def test_a_tied_model_in_several_files_loads(tmp_path, count):
    config = text_config(tied=True)
    config = replace(config, decoder=replace(config.decoder, num_heads=8, num_kv_heads=8, width=64))
    model = random_model(config)
    save_model(model, tmp_path, format="meta")
    whole = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    assert whole["output.weight"].equal(whole["tok_embeddings.weight"])
    params = json.loads((tmp_path / "params.json").read_text())
    args = ModelArgs(**params, max_batch_size=1, max_seq_len=8)
    axes = meta_split_axes(Transformer(args))
    (tmp_path / "consolidated.00.pth").unlink()
    write_split(whole, axes, count, tmp_path)
    assert_same(load_model(tmp_path), model)


def test_the_hubs_file_name_and_known_buffers_are_read(tmp_path):
    model = random_model()
    save_model(model, tmp_path, format="meta")
    state = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    torch.save(state | {"text_model.rope.freqs": torch.ones(4)}, tmp_path / "consolidated.pth")
    (tmp_path / "consolidated.00.pth").unlink()
    assert_same(load_model(tmp_path), model)


def test_views_of_one_storage_are_read_right(tmp_path):
    model = random_model(text_config())
    save_model(model, tmp_path, format="meta")
    state = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    joined = torch.cat([state["layers.0.feed_forward.w1.weight"], state["layers.0.feed_forward.w3.weight"]])
    state["layers.0.feed_forward.w1.weight"], state["layers.0.feed_forward.w3.weight"] = joined.chunk(2)
    state["layers.1.attention.wo.weight"] = state["layers.1.attention.wo.weight"].t().contiguous().t()
    state["norm.weight"] = torch.nn.Parameter(state["norm.weight"])
    torch.save(state, tmp_path / "consolidated.00.pth")
    assert_same(load_model(tmp_path), model)
    assert load_model(tmp_path).decoder.norm.weight.is_leaf


TABLES = ("tile_position_before", "patch_position", "tile_position_after")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("row", "slot", "said"),
    [
        (0, 0, "its row 0"),
        (1, 1, "does not use are not zero"),
        (2, 1, "other values than another canvas"),
    ],
)
def test_tables_that_meta_cannot_hold_are_refused_by_name(tmp_path, table, row, slot, said):
    model = random_model()
    with torch.no_grad():
        getattr(model.encoder, table).table[row, slot] += 1
    report = refusal(save_model, model, tmp_path / "out", format="meta").report
    assert f"encoder.{table}.table" in report
    assert said in report
    assert not (tmp_path / "out").exists()
    save_model(model, tmp_path / "out")


def test_cells_that_no_picture_can_use_are_written_as_zeros(tmp_path):
    save_model(random_model(), tmp_path, format="meta")
    state = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    for name in ("pre_tile_pos_embed.embedding", "post_tile_pos_embed.embedding", "gated_positional_embedding"):
        cells = state[f"vision_model.vision_encoder.{name}"]
        used = [bool(cells[row, col].any()) for row in range(4) for col in range(4)]
        assert used == [(row + 1) * (col + 1) <= 4 for row in range(4) for col in range(4)]


def published_params(name: str) -> dict:
    """params.json as it comes with the published weights: without a word of ours."""
    params = write_config(preset(name), torch.bfloat16)
    params.pop("sightline")
    return params


def write_params(folder, params):
    (folder / "params.json").write_text(json.dumps(params))
    return folder


@pytest.mark.parametrize("name", [*PUBLISHED, "11b-vision-base", "90b-vision-base", "1b", "3b", "8b", "70b"])
def test_published_params_give_the_preset(tmp_path, name):
    assert read_config(write_params(tmp_path, published_params(name))) == preset(name)


def test_published_params_have_metas_numbers():
    params = published_params("90b-vision")
    assert (params["ffn_dim_multiplier"], params["multiple_of"]) == (1.3, 4096)
    params = published_params("1b")
    assert (params["ffn_dim_multiplier"], params["multiple_of"]) == (1.5, 256)


def test_metas_own_reading_of_our_params_agrees(tmp_path):
    params = write_config(preset("default"), torch.float32)
    args = ModelArgs(**{key: value for key, value in params.items() if "vision" not in key}, max_seq_len=8)
    assert Transformer(args).layers[0].feed_forward.w1.weight.shape[0] == preset("default").decoder.mlp_dim


def test_unscaled_rope_and_its_context_are_read(tmp_path):
    decoder = read_config(write_params(tmp_path, published_params("8b") | {"use_scaled_rope": False})).decoder
    assert decoder.rope_scaling is None
    assert decoder.max_context == 8192


def test_cross_layers_stand_where_metas_schedule_puts_them(tmp_path):
    for num_layers, num_cross in ((32, 8), (80, 20), (10, 3), (7, 7), (9, 2)):
        params = published_params("11b-vision")
        params |= {"n_layers": num_layers, "vision_num_cross_attention_layers": num_cross}
        found = read_config(write_params(tmp_path, params)).adapter.cross_layers
        owner = SimpleNamespace(n_llama_layers=num_layers)
        schedule = oracle.CrossAttentionTransformerText._init_fusion_schedule(owner, num_cross)
        expected = []
        for layer in range(num_layers):
            expected += [True, False] if layer in schedule else [False]
        assert found == tuple(place for place, is_cross in enumerate(expected) if is_cross)


REFUSED = {
    "dim is missing": lambda p: p.pop("dim"),
    "n_layers is missing": lambda p: p.pop("n_layers"),
    "vocab_size is missing": lambda p: p.pop("vocab_size"),
    "multiple_of is missing": lambda p: p.pop("multiple_of"),
    "vision_max_num_chunks is missing": lambda p: p.pop("vision_max_num_chunks"),
    "quantization_args is set": lambda p: p.update(quantization_args={"scheme": "int4"}),
    "lora_args is set": lambda p: p.update(lora_args={"rank": 8}),
    "dim is '32'": lambda p: p.update(dim="32"),
    "vocab_size is -1": lambda p: p.update(vocab_size=-1),
    "norm_eps is None": lambda p: p.update(norm_eps=None),
    "ffn_dim_multiplier is 'x'": lambda p: p.update(ffn_dim_multiplier="x"),
    "multiple_of is 0": lambda p: p.update(multiple_of=0),
    "sightline is a list": lambda p: p.update(sightline=[]),
    "did you mean max_context?": lambda p: p["sightline"].update(max_contxt=1),
    "did you mean patch_size?": lambda p: p["sightline"]["vision"].update(patchsize=1),
    "sightline.rope_scaling has the unknown key": lambda p: p["sightline"]["rope_scaling"].update(factors=1),
    "factor is 'x'": lambda p: p["sightline"]["rope_scaling"].update(factor="x"),
    "cross_layers is 3": lambda p: p["sightline"].update(cross_layers=3),
    "sightline has 1 cross_layers": lambda p: p["sightline"].update(cross_layers=[1]),
    "feature_layers is ['a']": lambda p: p["sightline"]["vision"].update(feature_layers=["a"]),
    "num_heads 5": lambda p: p.update(n_heads=5),
}


@pytest.mark.parametrize("said", REFUSED)
def test_params_that_cannot_be_computed_are_refused_by_name(tmp_path, said):
    params = write_config(preset("tiny"), torch.float32)
    REFUSED[said](params)
    assert said in refusal(read_config, write_params(tmp_path, params)).message


def test_too_many_cross_layers_are_refused(tmp_path):
    params = published_params("11b-vision") | {"vision_num_cross_attention_layers": 33}
    assert "expected 1 to 32" in refusal(read_config, write_params(tmp_path, params)).message


@pytest.fixture
def eight_files(tmp_path):
    """A folder of eight files, with the state they were cut from."""
    model = random_model(eight_heads())
    save_model(model, tmp_path / "whole", format="meta")
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "params.json").write_text((tmp_path / "whole" / "params.json").read_text())
    whole = torch.load(tmp_path / "whole" / "consolidated.00.pth", weights_only=True)
    axes = {key.theirs: key.split for key in meta.keys(model.config)}
    write_split(whole, axes, 8, folder)
    return folder, whole, axes


def forbid_reading(monkeypatch):
    """From here on no weight may be read."""

    def read(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("vlm.checkpoint.torch_file.TorchTensor.copy_to", read)


def test_seven_of_eight_files_are_refused_before_any_weight_is_read(eight_files, monkeypatch):
    folder, *_ = eight_files
    forbid_reading(monkeypatch)
    (folder / "consolidated.07.pth").unlink()
    assert "expected 8 of 64 rows" in refusal(load_model, folder).message
    (folder / "consolidated.03.pth").unlink()
    message = refusal(load_model, folder).report
    assert "consolidated.02.pth, consolidated.04.pth" in message


def test_files_of_different_splits_are_refused(eight_files, monkeypatch):
    folder, whole, axes = eight_files
    forbid_reading(monkeypatch)
    other = folder / "other"
    other.mkdir()
    write_split(whole, axes, 4, other)
    (other / "consolidated.03.pth").replace(folder / "consolidated.07.pth")
    assert "other shapes or dtypes in other files" in refusal(load_model, folder).message


def test_a_wrong_vocab_size_is_refused_before_any_weight_is_read(eight_files, monkeypatch):
    folder, *_ = eight_files
    forbid_reading(monkeypatch)
    edit_json(folder / "params.json", lambda p: p.update(vocab_size=500))
    assert "params.json says vocab_size 500" in refusal(load_model, folder).message


def test_files_of_different_tensors_are_refused(eight_files):
    folder, *_ = eight_files
    state = torch.load(folder / "consolidated.05.pth", weights_only=True)
    del state["text_model.norm.weight"]
    torch.save(state, folder / "consolidated.05.pth")
    assert "hold other tensors: text_model.norm.weight" in refusal(load_model, folder).message


def test_both_names_for_one_file_are_refused(tmp_path):
    save_model(random_model(), tmp_path, format="meta")
    (tmp_path / "consolidated.pth").write_bytes((tmp_path / "consolidated.00.pth").read_bytes())
    assert "holds these weight files" in refusal(load_model, tmp_path).message


def test_our_key_says_what_params_has_no_word_for():
    own = write_config(preset("tiny"), torch.float32)["sightline"]
    assert own["rope_scaling"] == asdict(preset("tiny").decoder.rope_scaling)
    assert own["cross_layers"] == list(preset("tiny").adapter.cross_layers)
    assert "feature_point" not in own["vision"]
    config = replace(preset("tiny"), adapter=AdapterConfig(cross_layers=(0, 1)))
    assert write_config(config, torch.float32)["sightline"]["cross_layers"] == [0, 1]


def test_another_format_is_a_wrong_request(tmp_path):
    with pytest.raises(VLMError, match='give "hf" or "meta"') as caught:
        save_model(random_model(), tmp_path / "out", format="gguf")
    assert caught.value.code == "invalid_request"


@pytest.mark.filterwarnings("ignore:.*all_gather_tensor.*:FutureWarning")  # Meta's call, torch's warning
@pytest.mark.parametrize("prompt", ["text_only", "two_images_apart"])
def test_both_formats_compute_what_their_own_programs_compute(tmp_path, prompt):
    """Names that are swapped for others of the same shape show here only."""
    small = CONFIGS["default"]
    settings, state = random_hf_state(small)
    hf.stock(settings, state).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    case = build_case(small, prompt)
    expected = ours.logits(model, case)
    assert torch.allclose(expected, hf.logits(hf.repaired(settings, state), case), atol=1e-4)

    save_model(model, tmp_path / "meta", format="meta")
    theirs = oracle.SmallTransformer(settings)
    theirs.load_state_dict(torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True), strict=True)
    theirs.setup_cache(max_batch_size=1, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.allclose(expected, oracle.logits(theirs.eval(), case), atol=1e-4)
    assert_same(load_model(tmp_path / "meta"), model)
