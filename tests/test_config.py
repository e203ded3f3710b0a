"""The presets are the published models, and a config that cannot be computed is refused in one sentence."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

from adapters.config import AdapterConfig
from vision_encoder.config import VisionConfig
from vlm.config import PRESETS, DecoderConfig, ModelConfig, RopeScaling, preset
from vlm.errors import VLMError
from vlm.model import VisionLanguageModel

TINY = preset("tiny")


def num_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VisionLanguageModel(config).parameters())


# Published models


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("11b-vision", 10_670_220_835),
        ("11b-vision-base", 10_642_941_475),
        ("90b-vision", 88_593_355_323),
        ("90b-vision-base", 88_566_075_963),  # as much less as the 11B's, for the encoder is the same
        ("1b", 1_235_814_400),
        ("3b", 3_212_749_824),
        ("8b", 8_030_261_248),
        ("70b", 70_553_706_496),
    ],
)
def test_a_preset_has_as_many_parameters_as_its_checkpoint(name, expected):
    assert num_parameters(preset(name)) == expected


def test_11b_has_the_sizes_that_transformers_takes_for_granted():
    """Its `MllamaConfig` without arguments is 11B, up to the tile size."""
    theirs, ours = MllamaConfig(), preset("11b-vision")
    text, vision = theirs.text_config, theirs.vision_config
    decoder, encoder = ours.decoder, ours.vision
    assert ours.adapter.cross_layers == tuple(text.cross_attention_layers)
    assert ours.num_layers == text.num_hidden_layers
    assert (decoder.width, decoder.num_heads, decoder.num_kv_heads) == (4096, text.num_attention_heads, 8)
    assert (decoder.mlp_dim, decoder.vocab_size) == (text.intermediate_size, text.vocab_size)
    assert decoder.max_context == text.max_position_embeddings
    assert (encoder.width, encoder.num_heads) == (vision.hidden_size, vision.attention_heads)
    assert (encoder.num_local_layers, encoder.num_global_layers) == (vision.num_hidden_layers, vision.num_global_layers)
    assert encoder.feature_layers == tuple(vision.intermediate_layers_indices)
    assert (encoder.feature_dim, encoder.mlp_dim) == (vision.vision_output_dim, vision.intermediate_size)
    assert (encoder.patch_size, encoder.max_tiles) == (vision.patch_size, vision.max_num_tiles)
    assert [list(canvas) for canvas in encoder.canvases] == vision.supported_aspect_ratios
    with torch.device("meta"):
        theirs.vision_config.image_size = encoder.tile_size
        model = MllamaForConditionalGeneration(theirs)
    assert num_parameters(ours) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "tokens", "padding"),
    [
        ("11b-vision", 1601, 7),
        ("11b-vision-base", 1025, 7),
        ("90b-vision", 1601, 7),
        ("90b-vision-base", 1025, 7),
    ],
)
def test_tokens_of_a_tile_of_the_published_encoders(name, tokens, padding):
    vision = preset(name).vision
    assert (vision.tokens_per_tile, vision.num_padding_tokens) == (tokens, padding)
    assert (vision.feature_dim, vision.head_dim, len(vision.canvases)) == (7680, 80, 8)


@pytest.mark.parametrize("name", ["11b-vision", "90b-vision"])
def test_a_cross_layer_stands_before_every_fourth_self_attention_layer(name):
    config = preset(name)
    places = [index - earlier for earlier, index in enumerate(config.adapter.cross_layers)]
    assert places == list(range(3, config.decoder.num_layers, 4))


@pytest.mark.parametrize(("name", "factor"), [("1b", 32), ("3b", 32), ("8b", 8), ("70b", 8), ("90b-vision", 8)])
def test_rope_factors_are_the_published_ones(name, factor):
    decoder = preset(name).decoder
    assert decoder.rope_scaling == RopeScaling(
        factor=factor, low_frequency_factor=1.0, high_frequency_factor=4.0, original_context=8192
    )
    assert (decoder.rope_theta, decoder.max_context, decoder.norm_eps) == (500000.0, 131072, 1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_the_embedding_has_8_rows_more_than_the_output_where_there_are_images(name):
    config = preset(name)
    assert config.decoder.num_embeddings - config.decoder.vocab_size == (8 if config.vision else 0)
    assert config.decoder.tied == (name in ("1b", "3b"))


def test_an_unknown_preset_is_refused_and_the_known_ones_are_named():
    with pytest.raises(VLMError, match="no preset is named '11b'; there are 11b-vision, 11b-vision-base, ") as caught:
        preset("11b")
    assert caught.value.code == "invalid_request"
    for name in ("x" * 1000, None, ["11b"]):
        with pytest.raises(VLMError, match="no preset is named") as caught:
            preset(name)
        assert len(str(caught.value)) <= 300


# Whose forward pass


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).vision])
def test_the_transformers_reference_changes_two_things_and_back_again(name):
    config = preset(name)
    stock = config.with_reference("transformers")
    assert (config.reference, stock.reference) == ("meta", "transformers")
    assert stock.adapter == replace(config.adapter, leak_attention=True)
    assert stock.vision == replace(config.vision, feature_point="after")
    assert stock.decoder == config.decoder
    assert stock.with_reference("meta") == config
    assert config.with_reference("meta") == config


def test_a_text_only_model_is_the_same_in_both_references():
    config = preset("1b")
    assert config.with_reference("transformers") == config
    assert config.reference == "meta"


@pytest.mark.parametrize("name", ["tiny", "1b"])
@pytest.mark.parametrize("reference", ["Meta", "hf", "", None])
def test_an_unknown_reference_is_refused(name, reference):
    with pytest.raises(VLMError, match=r'reference is .*; give "meta" or "transformers"') as caught:
        preset(name).with_reference(reference)
    assert caught.value.code == "invalid_request"


# Configs as such

PARTS = [TINY.vision, TINY.decoder, TINY.adapter, TINY, TINY.decoder.rope_scaling]


@pytest.mark.parametrize("config", PARTS, ids=lambda config: type(config).__name__)
def test_configs_are_frozen_keyword_only_and_know_no_other_names(config):
    for field in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, field.name, None)
    with pytest.raises(TypeError, match="positional"):
        type(config)(1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        replace(config, widht=1)
    assert replace(config) == config
    assert hash(replace(config)) == hash(config)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_each_time(name):
    assert preset(name) == preset(name)


# Refusals


@pytest.mark.parametrize(
    "name", ["tile_size", "max_tiles", "patch_size", "width", "num_heads", "mlp_dim", "num_local_layers"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_of_the_encoder_below_1_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1"):
        replace(TINY.vision, **{name: value})


def test_a_tile_that_is_no_whole_number_of_patches_is_refused():
    with pytest.raises(ValueError, match="tile_size 30 is no multiple of patch_size 7"):
        replace(TINY.vision, tile_size=30)


def test_a_vision_width_that_its_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 32 is no multiple of num_heads 3"):
        replace(TINY.vision, num_heads=3)


def test_fewer_global_layers_than_none_are_refused():
    assert replace(TINY.vision, num_global_layers=0).num_global_layers == 0
    with pytest.raises(ValueError, match="num_global_layers is -1; it must not be negative"):
        replace(TINY.vision, num_global_layers=-1)


@pytest.mark.parametrize("point", ["during", "", None])
def test_another_feature_point_is_refused(point):
    with pytest.raises(ValueError, match=r'feature_point is .*; it must be "before" or "after"'):
        replace(TINY.vision, feature_point=point)


@pytest.mark.parametrize("layers", [(2, 0), (1, 1), (-1, 0), (0, 3), (3,)])
def test_feature_layers_that_do_not_rise_within_the_local_layers_are_refused(layers):
    with pytest.raises(ValueError, match=r"feature_layers is \[.*\]; give rising layer indices from 0 to 2"):
        replace(TINY.vision, feature_layers=layers)


@pytest.mark.parametrize(
    "name", ["width", "num_layers", "num_heads", "num_kv_heads", "mlp_dim", "vocab_size", "max_context"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_of_the_decoder_below_1_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1"):
        replace(TINY.decoder, **{name: value})


@pytest.mark.parametrize(("width", "num_heads"), [(32, 5), (30, 4), (12, 4), (32, 32)])
def test_a_width_that_gives_no_heads_of_even_width_is_refused(width, num_heads):
    with pytest.raises(ValueError, match=f"width {width} must split into num_heads {num_heads} heads of even width"):
        replace(TINY.decoder, width=width, num_heads=num_heads)


def test_query_heads_that_their_key_heads_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_heads 4 is no multiple of num_kv_heads 3"):
        replace(TINY.decoder, num_kv_heads=3)


@pytest.mark.parametrize("name", ["rope_theta", "norm_eps"])
@pytest.mark.parametrize("value", [0.0, -1e-5, float("nan"), float("inf")])
def test_a_number_of_the_decoder_that_is_not_above_0_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a number above 0"):
        replace(TINY.decoder, **{name: value})


@pytest.mark.parametrize("name", ["factor", "low_frequency_factor", "high_frequency_factor", "original_context"])
@pytest.mark.parametrize("value", [0, -2, float("nan")])
def test_a_number_of_the_frequencies_that_is_not_above_0_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a number above 0"):
        replace(TINY.decoder.rope_scaling, **{name: value})


@pytest.mark.parametrize("low", [4.0, 5.0])
def test_frequency_factors_that_do_not_rise_are_refused(low):
    with pytest.raises(ValueError, match=f"low_frequency_factor is {low}; it must be below high_frequency_factor 4.0"):
        RopeScaling(factor=8.0, low_frequency_factor=low)


def test_fewer_embeddings_than_words_are_refused():
    with pytest.raises(ValueError, match="num_extra_embeddings is -1; it must not be negative"):
        replace(TINY.decoder, num_extra_embeddings=-1)


def test_a_tied_head_beside_extra_embeddings_is_refused():
    with pytest.raises(ValueError, match="a tied head has as many rows as the embedding; set tied=False or"):
        replace(TINY.decoder, tied=True)
    assert replace(TINY.decoder, tied=True, num_extra_embeddings=0).num_embeddings == 512


@pytest.mark.parametrize("layers", [(), (3, 1), (1, 1), (-1, 2)])
def test_cross_layers_that_do_not_rise_from_0_are_refused(layers):
    with pytest.raises(ValueError, match=r"cross_layers is \[.*\]; give rising layer positions, at least one"):
        AdapterConfig(cross_layers=layers)


def test_cross_layers_past_the_stack_are_refused():
    with pytest.raises(ValueError, match="cross_layers ends at 5, past the 5 layers"):
        replace(TINY, adapter=AdapterConfig(cross_layers=(1, 5)))
    assert replace(TINY, adapter=AdapterConfig(cross_layers=(1, 4))).num_layers == 5


@pytest.mark.parametrize("part", ["vision", "adapter"])
def test_vision_without_adapter_or_the_other_way_is_refused(part):
    with pytest.raises(ValueError, match="vision and adapter go together; give both or neither"):
        replace(TINY, **{part: None})


def test_the_tiny_preset_has_in_it_what_can_go_wrong():
    """More than one head a group, padding, several tiles, a feature before layer 0, gaps between the cross layers."""
    assert 1 < TINY.decoder.num_kv_heads < TINY.decoder.num_heads
    assert TINY.vision.feature_layers[0] == 0
    assert len(TINY.vision.canvases) == 8
    assert TINY.vision.num_global_layers > 0
    assert isinstance(TINY.vision, VisionConfig)
    assert isinstance(TINY.decoder, DecoderConfig)
    assert TINY.decoder.rope_scaling.original_context < TINY.decoder.max_context, "or its scaling would never be seen"
