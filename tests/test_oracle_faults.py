"""What stock transformers and Meta's code get wrong, one test a line of the README's table, and by how much.

Each test names the value that is right (`right`), shows what the faulty oracle gives instead and prints the distance
(`pytest -s`); an implementation under test goes beside `right`.
"""

import dataclasses
import math

import pytest
import torch
from llama_models.checkpoint import reshard_mp
from llama_models.llama3.chat_format import create_vision_mask
from llama_models.llama3.model import precompute_freqs_cis
from llama_models.llama3.multimodal.encoder_utils import contract_num_tokens_from_mult8, expand_num_tokens_to_mult8
from llama_models.llama3.multimodal.image_transform import VariableSizeImageTransform
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MllamaImageProcessor, MllamaProcessor, PreTrainedTokenizerFast
from transformers.models.mllama.modeling_mllama import MllamaRotaryEmbedding, _prepare_aspect_ratio_attention_mask

from tests.oracles import hf, meta
from tests.oracles.cases import CONFIGS, META_CONFIGS, Case, build_case, prompt_names
from tests.oracles.weights import POSITION_TABLES, mllama_config, random_hf_state
from tests.test_oracles import MODEL_CASES, TOLERANCE, difference, meta_model

pytestmark = pytest.mark.filterwarnings("ignore:.*all_gather_tensor.*:FutureWarning")  # Meta's call, torch's warning

SMALL = CONFIGS["default"]


@pytest.fixture(scope="module")
def stock_models() -> dict[str, hf.MllamaForConditionalGeneration]:
    return {name: hf.stock(*random_hf_state(config)) for name, config in META_CONFIGS.items()}


@pytest.mark.parametrize(("config", "prompt"), MODEL_CASES)
def test_stock_transformers_is_far_from_meta_as_soon_as_there_is_an_image(stock_models, config, prompt) -> None:
    case = build_case(CONFIGS[config], prompt)
    right = meta.logits(meta_model(config), case)
    wrong = difference(hf.logits(stock_models[config], case), right)
    print(f"{config} {prompt}: stock logits {wrong:.2f} away")
    assert wrong > 0.2 if case.images else wrong < TOLERANCE


# transformers >= 4.56: intermediate features are collected after their layers.


@pytest.mark.parametrize("config", META_CONFIGS)
def test_stock_transformers_takes_features_after_their_layers(stock_models, config) -> None:
    images = build_case(CONFIGS[config], "one_tile_middle").images
    right = meta.features(meta_model(config), images)
    found = hf.features(stock_models[config], images)
    width = CONFIGS[config].vision_dim
    print(f"{config}: stock features {difference(found, right):.2f} away")
    assert difference(found[..., :width], right[..., :width]) < TOLERANCE, "the final output is the same"
    assert difference(found[..., width:], right[..., width:]) > 0.3


def test_lowering_the_indices_by_one_repairs_features_except_before_layer_0() -> None:
    hf_config, state = random_hf_state(SMALL)
    lowered = mllama_config(dataclasses.replace(SMALL, feature_layers=tuple(i - 1 for i in SMALL.feature_layers)))
    images = build_case(SMALL, "two_tiles_wide").images
    right = hf.features(hf.repaired(hf_config, state), images)
    assert torch.equal(hf.features(hf.stock(lowered, state), images), right)

    hf_config, state = random_hf_state(dataclasses.replace(SMALL, feature_layers=(0,)))
    lowered = mllama_config(dataclasses.replace(SMALL, feature_layers=(-1,)))
    wrong = hf.features(hf.stock(lowered, state), images)
    assert difference(wrong, hf.features(hf.repaired(hf_config, state), images)) > 0.3, "-1 is after the last layer"


# transformers #39379: rows of text before the first image are cut off after the feed-forward only.


@pytest.mark.parametrize("prompt", prompt_names(SMALL))
def test_stock_transformers_spoils_every_row_when_text_stands_before_the_first_image(prompt) -> None:
    case = build_case(SMALL, prompt)
    right = meta.logits(meta_model("default"), case)
    features_only = hf.repaired(*random_hf_state(SMALL), rows=False)
    rows = (hf.logits(features_only, case) - right).abs().amax(-1)[0] / right.abs().max()
    print(f"{prompt}: rows {rows.min():.2f} to {rows.max():.2f} away")
    text_before = bool(case.images) and case.ids[0] != SMALL.marker
    assert rows.min() > 1e-3 if text_before else rows.max() < TOLERANCE


# transformers: a position table a ratio id, with slots that no picture can use.


def test_unused_slots_of_random_position_tables_reach_the_features() -> None:
    hf_config, state = random_hf_state(SMALL, tables="random")
    images = build_case(SMALL, "one_tile_middle").images
    cleared = dict(state)
    for name in POSITION_TABLES:
        table = state[name].clone().unflatten(1, (SMALL.max_tiles, -1))
        table[1, 1:] = 0  # ratio id 1 is one tile: slots 1 to 3 are padding tiles
        cleared[name] = table.flatten(1)
    right = hf.features(hf.repaired(hf_config, cleared), images)[0, 0]
    wrong = difference(hf.features(hf.repaired(hf_config, state), images)[0, 0], right)
    print(f"the used tile's features move by {wrong:.2f} with the unused slots")
    assert wrong > 0.05
    with pytest.raises(ValueError, match="not spread from one cell table"):
        meta.build(hf_config, state)


# transformers #35937: text-only rows beside image rows.


def test_stock_transformers_gives_a_text_only_row_another_result_beside_an_image_row() -> None:
    hf_config, state = random_hf_state(SMALL)
    case = build_case(SMALL, "one_tile_first")
    text = Case(build_case(SMALL, "text_only").ids[: len(case.ids)], [])
    right = meta.logits(meta_model("default"), text)
    inputs = {**hf.text_inputs(hf_config, case), **hf.vision_inputs(hf_config, case.images)}
    batch = {name: torch.cat([value, torch.zeros_like(value)]) for name, value in inputs.items()}
    batch["input_ids"][1] = torch.tensor(text.ids)
    batch["aspect_ratio_mask"][1, 0, 0] = 1  # as the processor pads a row without images
    with torch.no_grad():
        wrong = difference(hf.stock(hf_config, state)(**batch, use_cache=False).logits[1:], right)
        repaired = difference(hf.repaired(hf_config, state)(**batch, use_cache=False).logits[1:], right)
    print(f"text-only row in a mixed batch: stock {wrong:.2f} away, repaired {repaired:.0e}")
    assert wrong > 0.1
    assert repaired < TOLERANCE


def test_the_default_processor_of_transformers_breaks_on_a_text_only_row() -> None:
    """5.23: an error where the text-only row comes first, else ids of one row for pixels of two."""
    vocabulary = {word: index for index, word in enumerate(["<bos>", "<pad>", "<|image|>", "<|python_tag|>", "a"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", pad_token="<pad>", extra_special_tokens={"image_token": "<|image|>"}
    )
    process = MllamaProcessor(MllamaImageProcessor(size={"height": 56, "width": 56}), tokenizer)
    picture = Image.new("RGB", (100, 56))
    with pytest.raises((IndexError, ValueError)):
        process(text=["a a", "<|image|> a"], images=[[], [picture]], padding=True, return_tensors="pt")
    try:
        found = process(text=["<|image|> a", "a a"], images=[[picture], []], padding=True, return_tensors="pt")
    except ValueError:
        return  # older versions refuse this order as well
    assert len(found["aspect_ratio_ids"]) != len(found["pixel_values"])


# Meta, two or more images: the last span ends where the prompt ends.


@pytest.mark.parametrize(
    ("prompt", "ends"), [("one_tile_middle", False), ("two_images_apart", True), ("two_images_adjacent", True)]
)
def test_metas_generated_tokens_see_no_image_after_a_prompt_with_two(prompt: str, ends: bool) -> None:
    case = build_case(SMALL, prompt)
    length = len(case.ids) - 3  # the last three stand for generated tokens
    last_span = create_vision_mask(case.ids[:length], SMALL.marker)[-1]
    assert last_span[1] == (length if ends else -1)
    right = hf.logits(hf.repaired(*random_hf_state(SMALL)), case)
    found = meta.logits(meta_model("default"), case, prompt_length=length)
    assert difference(found[:, :length], right[:, :length]) < TOLERANCE
    wrong = difference(found[:, length:], right[:, length:])
    print(f"{prompt}: Meta's generated rows {wrong:.2e} away from one full pass")
    assert wrong > 0.1 if ends else wrong < TOLERANCE


# Meta: RoPE factor 8 in the code; 1B and 3B need 32.


def test_metas_rope_factor_is_8_whatever_the_model() -> None:
    def angles(factor: float) -> torch.Tensor:
        config = mllama_config(dataclasses.replace(SMALL, rope_factor=factor)).text_config
        return MllamaRotaryEmbedding(config).inv_freq

    metas = precompute_freqs_cis(SMALL.text_dim // SMALL.num_heads, 2, 500000.0, use_scaled=True)[1].angle()
    assert torch.allclose(angles(8.0), metas, rtol=1e-5, atol=0)
    assert (angles(32.0) / metas).min() < 0.26, "the slowest pair turns four times slower"
    with pytest.raises(ValueError, match="factor is 8"):
        meta.build(*random_hf_state(CONFIGS["factor_32"]))
    case = build_case(SMALL, "text_only")
    _, state = random_hf_state(SMALL)
    with_32 = hf.repaired(mllama_config(dataclasses.replace(SMALL, rope_factor=32.0)), state)
    wrong = difference(meta.logits(meta_model("default"), case), hf.logits(with_32, case))
    print(f"factor 8 for 32, 40 positions: logits {wrong:.1e} away")
    assert wrong > 3 * TOLERANCE


# Meta: a side becomes 0 above 4 tiles : 1.


@pytest.mark.parametrize("tile_size", [448, 560])
def test_metas_resize_makes_a_side_0_above_four_tiles_to_1(tile_size: int) -> None:
    transform = VariableSizeImageTransform(tile_size)
    longest = 4 * tile_size
    tiles, grid = transform(Image.new("RGB", (longest, 1)), 4)
    assert (len(tiles), grid) == (4, (1, 4))
    canvas = (longest, tile_size)
    assert transform.get_max_res_without_distortion((longest + 1, 1), canvas) == (longest, 0)
    with pytest.raises(ValueError, match="must be > 0"):
        transform(Image.new("RGB", (longest + 1, 1)), 4)
    with pytest.raises(ValueError, match="must be > 0"):
        transform(Image.new("RGB", (1, longest + 1)), 4)


# Meta's reshard_mp: two tensors are taken from the first shard only.


@pytest.mark.parametrize("name", ["text_model.learnable_embedding.weight", "vision_model.vision_projection.bias"])
def test_metas_reshard_takes_the_first_shard_of_two_split_tensors(name: str) -> None:
    meta.start_model_parallel()
    right = torch.arange(16.0)
    shards = [{name: part} for part in right.chunk(8)]
    assert torch.equal(reshard_mp(shards, size=1, rank=0)[name], right[:2])
    known = "vision_model.vision_projection.weight"
    assert torch.equal(reshard_mp([{known: part} for part in right.chunk(8)], size=1, rank=0)[known], right)


# Tokens per tile that already are a multiple of 8: no square tile has that many.


def test_meta_pads_a_multiple_of_8_by_8_more_and_transformers_masks_everything() -> None:
    padded, added = expand_num_tokens_to_mult8(torch.ones(1, 2, 16, 4))
    assert (padded.shape[-2], added) == (24, 8)
    assert contract_num_tokens_from_mult8(padded, added).shape[-2] == 16
    mask = _prepare_aspect_ratio_attention_mask(torch.tensor([[1, 0]]), 16, 16, torch.float32)
    assert (mask == torch.finfo(torch.float32).min).all(), "`-0:` is the whole axis, so every token counts as padding"
    assert all((math.isqrt(tokens - 1)) ** 2 + 1 != tokens for tokens in range(8, 4096, 8)), "not reachable"
