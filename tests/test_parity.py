"""Our model beside the oracles where `test_oracles.py` does not reach: stock transformers, batches, tables, bf16."""

from functools import cache

import pytest
import torch

from tests.oracles import hf, meta, ours
from tests.oracles.cases import CONFIGS, META_CONFIGS, Case, build_case, prompt_names
from tests.oracles.weights import random_hf_state
from tests.test_oracles import MODEL_CASES, TOLERANCE, difference, meta_model, used_tiles

pytestmark = pytest.mark.filterwarnings("ignore:.*all_gather_tensor.*:FutureWarning")  # Meta's call, torch's warning


@cache
def our_model(config: str, reference: str = "meta"):
    return ours.build(*random_hf_state(CONFIGS[config]), reference=reference)


@cache
def stock_model(config: str):
    return hf.stock(*random_hf_state(CONFIGS[config]))


@pytest.mark.parametrize(("config", "prompt"), MODEL_CASES)
def test_the_transformers_reference_equals_stock_transformers(config, prompt) -> None:
    case = build_case(CONFIGS[config], prompt)
    model = our_model(config, "transformers")
    if case.images:
        found = used_tiles(ours.features(model, case.images), case.images)
        expected = used_tiles(hf.features(stock_model(config), case.images), case.images)
        assert difference(found, expected) < TOLERANCE
    layers = zip(ours.layer_outputs(model, case), hf.layer_outputs(stock_model(config), case), strict=True)
    for layer, (found, expected) in enumerate(layers):
        assert difference(found, expected) < TOLERANCE, f"layer {layer} of those that ran"
    assert difference(ours.logits(model, case), hf.logits(stock_model(config), case)) < TOLERANCE


@pytest.mark.parametrize("prompt", prompt_names(CONFIGS["factor_32"]))
def test_another_rope_factor_and_a_last_cross_layer_equal_repaired_transformers(prompt) -> None:
    case = build_case(CONFIGS["factor_32"], prompt)
    repaired = hf.repaired(*random_hf_state(CONFIGS["factor_32"]))
    assert difference(ours.logits(our_model("factor_32"), case), hf.logits(repaired, case)) < TOLERANCE


@pytest.mark.parametrize("reference", ["meta", "transformers"])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_batch_of_all_prompts_gives_each_row_what_it_gives_alone(config, reference) -> None:
    model = our_model(config, reference)
    cases = [build_case(CONFIGS[config], prompt) for prompt in prompt_names(CONFIGS[config])]
    for case, together in zip(cases, ours.logits_many(model, cases), strict=True):
        assert difference(together, ours.logits(model, case)[0]) < TOLERANCE


@pytest.mark.parametrize("prompt", ["one_tile_middle", "two_tiles_wide", "two_images_apart"])
def test_random_unused_table_slots_take_the_general_path(prompt) -> None:
    state = random_hf_state(CONFIGS["default"], tables="random")
    model, images = ours.build(*state), build_case(CONFIGS["default"], prompt).images
    assert not model.encoder.missing_tiles_equal
    assert difference(ours.features(model, images), hf.features(hf.repaired(*state), images)) < TOLERANCE


@pytest.mark.parametrize("config", META_CONFIGS)
def test_missing_tiles_are_returned_as_meta_encodes_them(config) -> None:
    images = build_case(CONFIGS[config], "one_tile_middle").images
    found = ours.features(our_model(config), images)
    assert our_model(config).encoder.missing_tiles_equal
    assert difference(found, meta.features(meta_model(config), images)) < TOLERANCE


@pytest.mark.parametrize(("prompt", "images"), [("one_tile_middle", 1), ("two_images_apart", 2)])
def test_generated_rows_see_what_the_last_row_of_the_prompt_saw(prompt, images) -> None:
    """Meta's decoding of two images loses them; ours equals one full pass over prompt and reply (see the faults)."""
    model, case = our_model("default"), build_case(CONFIGS["default"], prompt)
    assert len(case.images) == images
    cut = len(case.ids) - 3
    shorter = ours.batch(model, [Case(case.ids[:cut], case.images)])
    with torch.inference_mode():
        rest = torch.tensor([case.ids[cut:]])
        from vlm.generation.generate import prefill

        hidden, cache = prefill(model, shorter, len(case.ids))
        output = model.decoder(rest, cache, shorter.image, shorter.reply_mask())
        rows = torch.cat([hidden[:, None], output.hidden], dim=1)
        found = model.decoder.logits(rows)
    # The cut stands after the last image, so that only the reply's rows are new.
    assert CONFIGS["default"].marker not in case.ids[cut:]
    assert difference(found, ours.logits(model, case)[:, cut - 1 :]) < TOLERANCE


@pytest.mark.parametrize("config", META_CONFIGS)
def test_bf16_is_no_further_from_float32_than_repaired_transformers(config) -> None:
    """Summed over the prompts, so that one lucky rounding decides nothing."""
    state = random_hf_state(CONFIGS[config])
    model, oracle = ours.build(*state, dtype=torch.bfloat16), hf.repaired(*state).to(torch.bfloat16)
    drift = oracle_drift = 0.0
    for prompt in prompt_names(CONFIGS[config]):
        case = build_case(CONFIGS[config], prompt)
        exact = ours.logits(our_model(config), case)
        drift += (ours.logits(model, case).float() - exact).square().mean().sqrt().item()
        images = [picture._replace(pixels=picture.pixels.bfloat16()) for picture in case.images]
        oracle_logits = hf.logits(oracle, Case(case.ids, images)).float()
        oracle_drift += (oracle_logits - exact).square().mean().sqrt().item()
    print(f"{config}: bf16 drift {drift:.4f}, repaired transformers {oracle_drift:.4f}")
    assert drift <= oracle_drift
