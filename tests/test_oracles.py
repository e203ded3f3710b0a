"""Parity: our model, and transformers with our three repairs, compute what Meta's code computes, small case by case.

`TWINS` is the table to add another implementation to. What each oracle gets wrong is in `test_oracle_faults.py`.
"""

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from llama_models.llama3.multimodal.image_transform import VariableSizeImageTransform
from PIL import Image
from torch import Tensor
from transformers import MllamaImageProcessor

from tests.oracles import hf, meta, ours
from tests.oracles.cases import CONFIGS, META_CONFIGS, PROMPTS, Case, Picture, build_case, prompt_names, visible_images
from tests.oracles.weights import POSITION_TABLES, cells_from_table, random_hf_state

pytestmark = pytest.mark.filterwarnings("ignore:.*all_gather_tensor.*:FutureWarning")  # Meta's call, torch's warning

TOLERANCE = 1e-5
"""Largest difference over largest value. The worst seen is 1e-6; a wrong RoPE factor alone gives 1e-4."""


class Twin(NamedTuple):
    """One implementation: how to build its model, and the module (or object) with the four questions."""

    build: Callable[..., object]
    answers: ModuleType


TWINS = {"transformers, repaired": Twin(hf.repaired, hf), "ours": Twin(ours.build, ours)}
MODEL_CASES = [(config, prompt) for config in META_CONFIGS for prompt in prompt_names(CONFIGS[config])]
IMAGE_CASES = [(config, prompt) for config, prompt in MODEL_CASES if prompt != "text_only"]


@cache
def twin_model(twin: str, config: str) -> object:
    return TWINS[twin].build(*random_hf_state(CONFIGS[config]))


@cache
def meta_model(config: str) -> meta.SmallTransformer:
    return meta.build(*random_hf_state(CONFIGS[config]))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected value."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def used_tiles(per_tile: Tensor, images: list[Picture]) -> Tensor:
    """The rows of `[m, t, …]` that belong to tiles of the images, one after the other `[tiles, …]`."""
    return torch.cat([rows[: len(picture.pixels)] for rows, picture in zip(per_tile, images, strict=True)])


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("config", "prompt"), IMAGE_CASES)
def test_features_and_image_tokens_equal_metas(twin: str, config: str, prompt: str) -> None:
    images = build_case(CONFIGS[config], prompt).images
    model, answers = twin_model(twin, config), TWINS[twin].answers
    for question in ("features", "image_tokens"):
        found = used_tiles(getattr(answers, question)(model, images), images)
        expected = used_tiles(getattr(meta, question)(meta_model(config), images), images)
        assert difference(found, expected) < TOLERANCE, question


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("config", "prompt"), MODEL_CASES)
def test_every_decoder_layer_and_the_logits_equal_metas(twin: str, config: str, prompt: str) -> None:
    case = build_case(CONFIGS[config], prompt)
    model, answers = twin_model(twin, config), TWINS[twin].answers
    found = answers.layer_outputs(model, case)
    expected = meta.layer_outputs(meta_model(config), case)
    for layer, (mine, metas) in enumerate(zip(found, expected, strict=True)):
        assert difference(mine, metas) < TOLERANCE, f"layer {layer} of those that ran"
    assert difference(answers.logits(model, case), meta.logits(meta_model(config), case)) < TOLERANCE


@pytest.mark.parametrize(("config", "prompt"), IMAGE_CASES)
def test_repaired_transformers_equals_meta_in_unused_tiles_too(config: str, prompt: str) -> None:
    images = build_case(CONFIGS[config], prompt).images
    found = hf.features(twin_model("transformers, repaired", config), images)
    assert difference(found, meta.features(meta_model(config), images)) < TOLERANCE


@pytest.mark.parametrize("config", META_CONFIGS)
def test_both_oracles_see_every_picture_and_every_token(config: str) -> None:
    """Away from zero: a change of one tile moves its features and the last logits, so that parity means something."""
    case = build_case(CONFIGS[config], "one_tile_middle")
    other = Case(case.ids, [Picture(case.images[0].pixels.flip(-1), case.images[0].grid)])
    model = meta_model(config)
    assert difference(meta.features(model, other.images), meta.features(model, case.images)) > 0.1
    logits, other_logits = meta.logits(model, case), meta.logits(model, other)
    marker = case.ids.index(CONFIGS[config].marker)
    assert torch.equal(other_logits[:, :marker], logits[:, :marker])
    assert difference(other_logits[:, -1], logits[:, -1]) > 0.05


@pytest.mark.parametrize("seed", range(50))
def test_the_rule_of_visible_images_equals_metas_intervals(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, (12,), generator=generator).tolist()  # a third are markers: many adjacent runs
    visible = visible_images(ids, marker=2)
    spans = meta.create_vision_mask(ids, 2)
    expected = torch.zeros(len(ids), len(spans), dtype=torch.bool)
    for image, (start, end) in enumerate(spans):
        expected[start : len(ids) if end == -1 else end, image] = True
    assert torch.equal(visible, expected)


@pytest.mark.parametrize("config", CONFIGS)
def test_position_tables_and_cells_are_inverse(config: str) -> None:
    small = CONFIGS[config]
    _, state = random_hf_state(small)
    _, random_state = random_hf_state(small, tables="random")
    for name in POSITION_TABLES:
        assert cells_from_table(state[name], small.grids, small.max_tiles)[0, 0].abs().min() > 0
        with pytest.raises(ValueError, match="not spread from one cell table"):
            cells_from_table(random_state[name], small.grids, small.max_tiles)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_gate_is_open(config: str) -> None:
    _, state = random_hf_state(CONFIGS[config])
    gates = {name: weight for name, weight in state.items() if name.endswith("gate") or "gate_" in name.split(".")[-1]}
    assert len(gates) == 3 + 2 * CONFIGS[config].num_global_layers + 2 * len(CONFIGS[config].cross_layers)
    assert all(gate.abs().min() >= 0.3 for gate in gates.values())


def test_the_small_models_cover_every_reachable_padding() -> None:
    """Patches of a square tile plus one are 1, 2 or 5 over a multiple of 8, so 7, 6 or 3 rows are padded."""
    assert {config.tile_tokens % 8 for config in CONFIGS.values()} == {1, 2, 5}
    assert {(side**2 + 1) % 8 for side in range(1, 9)} == {1, 2, 5}


def test_the_published_layers_come_from_metas_even_spread() -> None:
    """11B has 8 cross layers among 32, 90B 20 among 80: `fusion_schedule` puts Hugging Face's places there."""
    for num_layers, num_cross, step in ((32, 8, 4), (80, 20, 4)):
        model = type("Text", (), {"n_llama_layers": num_layers})
        schedule = meta.CrossAttentionTransformerText._init_fusion_schedule(model, num_cross)
        places = [layer + earlier for earlier, layer in enumerate(schedule)]
        assert places == list(range(step - 1, num_layers + num_cross, step + 1))


def test_every_kind_of_prompt_is_in_the_table() -> None:
    grids = [[part for part in parts if not isinstance(part, int)] for parts in PROMPTS.values()]
    assert {len(images) for images in grids} == {0, 1, 2, 3}
    assert {rows * cols for images in grids for rows, cols in images} == {1, 2, 3, 4}


@pytest.mark.parametrize(("size", "grid"), [((112, 56), (1, 2)), ((56, 112), (2, 1)), ((300, 50), (1, 4))])
def test_grids_are_rows_then_columns_in_both_oracles(size: tuple[int, int], grid: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)  # PIL's (width, height)
    assert VariableSizeImageTransform(56)(picture, 4)[1] == grid
    processed = MllamaImageProcessor(size={"height": 56, "width": 56})(images=picture, return_tensors="pt")
    assert CONFIGS["default"].grids[processed["aspect_ratio_ids"].item() - 1] == grid
