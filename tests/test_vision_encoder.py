"""The encoder beside a slow twin: Meta's rows and Meta's mask, all tiles and all padding, in plain float64."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from llama_models.llama3.multimodal.encoder_utils import expand_num_tokens_to_mult8
from torch import Tensor
from torch.nn import functional

from tests.conftest import random_model
from tests.nearness import difference
from vision_encoder.config import VisionConfig
from vision_encoder.encoder import VisionEncoder
from vlm.config import preset

TINY = VisionConfig.tiny()
TOLERANCE = 1e-5
CANVASES = {max_tiles: replace(TINY, max_tiles=max_tiles).canvases for max_tiles in (1, 2, 3, 4)}
TABLES = ("tile_position_before", "patch_position", "tile_position_after")


def build(seed: int = 0, **changes) -> VisionEncoder:
    """Return a random encoder with open gates and tables as Meta's."""
    return random_model(replace(preset("tiny"), vision=replace(TINY, **changes)), seed).encoder


def draw(encoder: VisionEncoder, canvas: tuple[int, int], seed: int = 0) -> Tensor:
    """Return random tiles [t, c, y, x] of one picture."""
    side = encoder.config.tile_size
    return torch.randn(math.prod(canvas), 3, side, side, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def fill_slots(encoder: VisionEncoder, table: str, how: str) -> None:
    """Give the table's unused slots random values: "equal" in all slots of a canvas, or "other" in each."""
    weight = getattr(encoder, table).table
    generator = torch.Generator().manual_seed(1)
    for row, (rows, cols) in zip(weight[1:], encoder.config.canvases, strict=True):
        unused = row[rows * cols :]
        unused.copy_(torch.randn(unused[:1].shape if how == "equal" else unused.shape, generator=generator))
    encoder.inspect_tables()


@torch.no_grad()
def features(encoder: VisionEncoder, *pictures: tuple[Tensor, tuple[int, int]], slots: int | None = None) -> Tensor:
    """Return [m, t, p, f]; missing tiles are given as NaN, for they must not be read."""
    slots = slots or max(len(pixels) for pixels, _ in pictures)
    together = torch.full((len(pictures), slots, *pictures[0][0].shape[1:]), math.nan)
    for place, (pixels, _) in enumerate(pictures):
        together[place, : len(pixels)] = pixels
    return encoder(together, [canvas for _, canvas in pictures])


def twin(encoder: VisionEncoder, pixels: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return the features [max_tiles, p, f] of one picture, in float64 from the encoder's own weights.

    Every tile and every padding row is computed, under one [rows, rows] mask.
    Source: llama-models models/llama3/multimodal/model.py, VisionEncoder.forward, and build_encoder_attention_mask.
    """
    config = encoder.config
    weights = {name: weight.double() for name, weight in encoder.named_parameters()}
    slots = next(i for i, known in enumerate(config.canvases, start=1) if known == canvas)
    size, width, p = config.patch_size, config.width, config.tokens_per_tile
    tiles = torch.zeros(config.max_tiles, 3, config.tile_size, config.tile_size, dtype=torch.float64)
    tiles[: len(pixels)] = pixels

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], config.norm_eps)

    def tile_position(name: str) -> Tensor:
        return (weights[f"{name}.gate"].tanh() * weights[f"{name}.table"][slots])[:, None]

    kernel = weights["patch_embedding.weight"].reshape(width, 3, size, size)
    x = functional.conv2d(tiles, kernel, stride=size).reshape(config.max_tiles, width, -1).transpose(1, 2)
    x = x + tile_position("tile_position_before")
    x = torch.cat([weights["class_embedding"].expand(config.max_tiles, 1, width), x], dim=1)
    gate = weights["patch_position.gate"].tanh()
    x = x + weights["patch_position.embedding"] * (1 - gate) + weights["patch_position.table"][slots] * gate
    x = norm(x, "norm_before")
    padded = p + (8 - p % 8)
    rows = torch.zeros(config.max_tiles, padded, width, dtype=torch.float64)
    rows[:, :p] = x
    x = rows.reshape(-1, width)
    hidden = torch.ones(config.max_tiles, padded, dtype=torch.bool)
    hidden[: len(pixels), :p] = False
    mask = hidden.reshape(-1, 1) & hidden.reshape(1, -1)  # padding does not see padding; all else sees all

    def layer(x: Tensor, name: str, gated: bool) -> Tensor:
        attention_gate = weights[f"{name}.attention_gate"].tanh() if gated else 1
        mlp_gate = weights[f"{name}.mlp_gate"].tanh() if gated else 1
        normed, heads = norm(x, f"{name}.attention_norm"), []
        for head in range(config.num_heads):
            part = slice(head * config.head_dim, (head + 1) * config.head_dim)
            q, k, v = (normed @ weights[f"{name}.attention.{kind}_proj.weight"][part].T for kind in "qkv")
            scores = (q @ k.T / math.sqrt(config.head_dim)).masked_fill(mask, -math.inf)
            heads.append(scores.softmax(-1) @ v)
        x = x + attention_gate * (torch.cat(heads, dim=-1) @ weights[f"{name}.attention.o_proj.weight"].T)
        inner = norm(x, f"{name}.mlp_norm") @ weights[f"{name}.fc1.weight"].T + weights[f"{name}.fc1.bias"]
        gelu = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        return x + mlp_gate * (gelu @ weights[f"{name}.fc2.weight"].T + weights[f"{name}.fc2.bias"])

    states = [x]
    for index in range(config.num_local_layers):
        states.append(layer(states[-1], f"local_layers.{index}", gated=False))
    later = 1 if config.feature_point == "after" else 0
    taken = [states[index + later] for index in config.feature_layers]
    x = norm(states[-1], "norm_after").reshape(config.max_tiles, padded, width)
    x = (x + tile_position("tile_position_after")).reshape(-1, width)
    for index in range(config.num_global_layers):
        x = layer(x, f"global_layers.{index}", gated=True)
    interleaved = [state[:, axis, None] for axis in range(width) for state in taken]
    return torch.cat([x, *interleaved], dim=-1).reshape(config.max_tiles, padded, -1)[:, :p]


# Equal to the twin


@pytest.mark.parametrize(
    ("max_tiles", "canvas"), [(max_tiles, canvas) for max_tiles in CANVASES for canvas in CANVASES[max_tiles]]
)
def test_features_of_real_and_of_missing_tiles_equal_the_slow_twins(max_tiles, canvas):
    encoder = build(max_tiles=max_tiles)
    pixels = draw(encoder, canvas)
    assert encoder.missing_tiles_equal
    found = features(encoder, (pixels, canvas), slots=max_tiles)[0]
    assert difference(found, twin(encoder, pixels, canvas)) < TOLERANCE


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("max_tiles", [2, 4])
@pytest.mark.parametrize("how", ["equal", "other"])
def test_tables_with_values_in_unused_slots_equal_the_slow_twin(table, max_tiles, how):
    """Equal ones still let one tile stand for all; others take the general path."""
    encoder = build(max_tiles=max_tiles)
    fill_slots(encoder, table, how)
    # With two tiles no canvas leaves more than one unused.
    assert encoder.missing_tiles_equal == (how == "equal" or max_tiles == 2)
    for canvas in CANVASES[max_tiles]:
        pixels = draw(encoder, canvas)
        found = features(encoder, (pixels, canvas), slots=max_tiles)[0]
        assert difference(found, twin(encoder, pixels, canvas)) < TOLERANCE, canvas


@pytest.mark.parametrize("canvas", CANVASES[4])
def test_the_general_path_equals_the_shortcut_where_both_hold(canvas):
    encoder = build()
    general = copy.deepcopy(encoder)
    general.missing_tiles_equal = False
    picture = (draw(encoder, canvas), canvas)
    assert difference(features(general, picture, slots=4), features(encoder, picture, slots=4)) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"tile_size": 35, "num_heads": 4},
        {"tile_size": 14},
        {"tile_size": 7},
        {"feature_layers": ()},
        {"feature_layers": (0, 1, 2)},
        {"feature_layers": (2,), "feature_point": "after"},
        {"feature_point": "after"},
        {"num_global_layers": 0},
        {"norm_eps": 0.1},
    ],
    ids=str,
)
def test_other_shapes_equal_the_slow_twin(changes):
    encoder = build(**changes)
    for canvas in [(1, 1), (1, 2), (3, 1), (2, 2)]:
        pixels = draw(encoder, canvas)
        found = features(encoder, (pixels, canvas), slots=4)[0]
        assert difference(found, twin(encoder, pixels, canvas)) < TOLERANCE, canvas


@pytest.mark.parametrize("canvas", [(1, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("slots", ["used", "all"])
def test_gradients_equal_the_slow_twins(canvas, slots):
    """Of one tile, where three tiles and all padding are folded into single rows; unused slots never learn."""
    encoder = build()
    pixels = draw(encoder, canvas)
    used = len(pixels)
    num_returned = used if slots == "used" else 4
    padded = torch.cat([pixels, torch.zeros(num_returned - used, *pixels.shape[1:])])
    names, weights = zip(*encoder.named_parameters(), strict=True)
    towards = torch.randn(num_returned, encoder.config.tokens_per_tile, encoder.config.feature_dim).double()
    expected = torch.autograd.grad((twin(encoder, pixels, canvas)[:num_returned] * towards).sum(), weights)
    found = torch.autograd.grad((encoder(padded[None], [canvas])[0].double() * towards).sum(), weights)
    row = encoder.config.canvases.index(canvas) + 1
    for name, ours, theirs in zip(names, found, expected, strict=True):
        if name.endswith("table"):
            assert ours[row, :used].abs().sum() > 0, name
            ours, theirs = ours[row, :used], theirs[row, :used]
        assert theirs.abs().max() > 0, name
        assert difference(ours, theirs) < 1e-4, name


@pytest.mark.parametrize("general", [False, True])
def test_unused_table_slots_get_a_gradient_of_exactly_zero(general):
    encoder = build()
    encoder.missing_tiles_equal = not general
    canvases = [(1, 1), (3, 1), (2, 2)]
    pixels = torch.stack([draw(encoder, (2, 2), seed) for seed in range(3)])
    encoder(pixels, canvases).square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in encoder.parameters())
    for name in TABLES:
        grad = getattr(encoder, name).table.grad
        for row, (rows, cols) in zip(grad[1:], encoder.config.canvases, strict=True):
            used = rows * cols if (rows, cols) in canvases else 0
            assert (row[used:] == 0).all()
            assert row[:used].abs().sum() > 0 or used == 0
        assert (grad[0] == 0).all()


# Batches


def test_a_batch_of_pictures_of_other_tile_counts_equals_its_singles_in_their_order():
    encoder = build()
    canvases = [(2, 2), (1, 1), (1, 3), (1, 1), (2, 1), (4, 1), (1, 2), (3, 1), (1, 1)]
    pictures = [(draw(encoder, canvas, seed), canvas) for seed, canvas in enumerate(canvases)]
    together = features(encoder, *pictures)
    assert together.shape[:2] == (9, 4)
    for picture, found in zip(pictures, together, strict=True):
        assert difference(found, features(encoder, picture, slots=4)[0]) < TOLERANCE
    backwards = features(encoder, *pictures[::-1])
    assert difference(backwards, together.flip(0)) < TOLERANCE


@pytest.mark.parametrize("canvas", [(1, 1), (1, 2), (3, 1)])
def test_more_slots_than_tiles_change_no_feature(canvas):
    encoder = build()
    picture = (draw(encoder, canvas), canvas)
    used = math.prod(canvas)
    alone, expected = features(encoder, picture), twin(encoder, *picture)
    for slots in range(used, 5):
        found = features(encoder, picture, slots=slots)
        assert torch.equal(found[:, :used], alone)
        assert difference(found[0], expected[:slots]) < TOLERANCE


def test_what_stands_in_missing_tiles_is_never_read():
    encoder = build()
    pixels = torch.randn(2, 4, 3, 28, 28)
    canvases = [(1, 1), (1, 3)]
    other = pixels.clone()
    other[0, 1:] = math.nan
    other[1, 3:] = math.inf
    with torch.no_grad():
        assert torch.equal(encoder(pixels, canvases), encoder(other, canvases))


def test_a_picture_full_of_nan_leaves_its_neighbours_bit_equal():
    encoder = build()
    pixels = torch.randn(3, 2, 3, 28, 28)
    broken = pixels.clone()
    broken[1] = math.nan
    for canvases in ([(1, 1), (1, 1), (1, 2)], [(1, 2)] * 3):
        with torch.no_grad():
            clean, found = encoder(pixels, canvases), encoder(broken, canvases)
        assert torch.equal(found[[0, 2]], clean[[0, 2]])
        assert found[1, 0].isnan().any(-1).all(), "every token of the broken one says so"


def test_canvases_may_be_a_tensor():
    encoder = build()
    pixels = torch.randn(2, 2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(encoder(pixels, torch.tensor([[1, 2], [2, 1]])), encoder(pixels, [(1, 2), (2, 1)]))


def test_pixels_are_left_as_they_were():
    encoder = build()
    pixels = torch.randn(1, 2, 3, 28, 28)
    before = pixels.clone()
    encoder(pixels, [(1, 1)])
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("canvas", [(2, 2), (1, 4)])
def test_every_tile_sees_every_other(canvas):
    encoder = build()
    pixels = draw(encoder, canvas)
    found = features(encoder, (pixels, canvas))
    for tile in range(4):
        changed = pixels.clone()
        changed[tile, :, -1, -1] += 1
        moved = (features(encoder, (changed, canvas)) - found).abs().amax((0, 2, 3))
        assert (moved > 1e-5).all()


def test_canvases_of_equally_many_tiles_are_told_apart():
    encoder = build()
    pixels = draw(encoder, (2, 2))
    wide, tall, square = (features(encoder, (pixels, canvas)) for canvas in [(1, 4), (4, 1), (2, 2)])
    assert min(difference(wide, tall), difference(wide, square), difference(tall, square)) > 0.01


def test_bf16_takes_float32_pixels_and_stays_near():
    encoder = build()
    picture = (draw(encoder, (1, 2)), (1, 2))
    found = features(copy.deepcopy(encoder).bfloat16(), picture)
    assert found.dtype == torch.bfloat16
    assert difference(found.float(), features(encoder, picture)) < 0.05


# Rules


@pytest.mark.parametrize("num_tokens", range(1, 41))
def test_the_padding_rule_is_metas(num_tokens):
    tile = SimpleNamespace(tokens_per_tile=num_tokens)
    padding = VisionConfig.num_padding_tokens.fget(tile)
    padded, added = expand_num_tokens_to_mult8(torch.ones(1, 1, num_tokens, 2))
    assert padding == added == padded.shape[2] - num_tokens


@pytest.mark.parametrize("layer", [0, 1])
def test_after_a_layer_is_before_the_next(layer):
    after = build(feature_layers=(layer,), feature_point="after")
    before = build(feature_layers=(layer + 1,), feature_point="before")
    picture = (draw(after, (1, 2)), (1, 2))
    assert torch.equal(features(after, picture), features(before, picture))
    same = features(build(feature_layers=(layer,)), picture)
    assert difference(same, features(after, picture)) > 0.05


def test_the_final_output_does_not_depend_on_which_features_are_taken():
    picture = (draw(build(), (2, 1)), (2, 1))
    width = TINY.width
    expected = features(build(feature_layers=()), picture)
    for layers in [(0,), (2,), (0, 1, 2)]:
        for point in ("before", "after"):
            found = features(build(feature_layers=layers, feature_point=point), picture)
            assert found.shape[-1] == width * (1 + len(layers))
            assert torch.equal(found[..., :width], expected)


def test_a_new_encoder_has_shut_position_gates_and_global_gates_of_a_quarter_pi():
    encoder = VisionEncoder(TINY)
    gates = {name: weight.item() for name, weight in encoder.named_parameters() if name.endswith("gate")}
    assert len(gates) == 3 + 2 * TINY.num_global_layers
    for name, gate in gates.items():
        assert gate == (pytest.approx(math.pi / 4) if name.startswith("global_layers") else 0.0)
    assert encoder.missing_tiles_equal
    assert features(encoder, (draw(encoder, (1, 1)), (1, 1))).isfinite().all()


# Whether one missing tile may stand for all


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_loading_a_state_dict_inspects_the_tables(table, assign):
    encoder, other = build(), build()
    fill_slots(other, table, "other")
    encoder.load_state_dict(other.state_dict(), assign=assign)
    assert not encoder.missing_tiles_equal
    encoder.load_state_dict(build().state_dict(), assign=assign)
    assert encoder.missing_tiles_equal


def test_loading_a_whole_model_inspects_the_tables():
    model, other = random_model(preset("tiny")), random_model(preset("tiny"))
    fill_slots(other.encoder, "patch_position", "other")
    model.load_state_dict(other.state_dict())
    assert not model.encoder.missing_tiles_equal


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("canvas_id", [1, 2, 5])
def test_one_changed_number_in_one_slot_ends_the_shortcut(table, canvas_id):
    encoder = build()
    with torch.no_grad():
        getattr(encoder, table).table[canvas_id, 3].view(-1)[-1] += 1e-6
    encoder.inspect_tables()
    assert not encoder.missing_tiles_equal


@pytest.mark.parametrize("table", TABLES)
def test_used_slots_and_row_0_do_not_end_the_shortcut(table):
    """Row 0 is "no image"; a canvas of three tiles leaves one slot, which stands for itself."""
    encoder = build()
    with torch.no_grad():
        weight = getattr(encoder, table).table
        weight[0] = torch.randn(weight.shape[1:])
        weight[3, :3] += 1  # (1, 3)
        weight[3, 3] += 1
        weight[6] += torch.randn(weight.shape[1:])  # (2, 2)
    encoder.inspect_tables()
    assert encoder.missing_tiles_equal
    for canvas in [(1, 3), (2, 2)]:
        pixels = draw(encoder, canvas)
        found = features(encoder, (pixels, canvas), slots=4)[0]
        assert difference(found, twin(encoder, pixels, canvas)) < TOLERANCE


# Refusals


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (1, 1, 3, 28, 14), (1, 1, 1, 28, 28), (1, 1, 28, 28, 3)])
def test_pixels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"pixels have shape \[1, .*\]; give \[m, t, 3, 28, 28\]"):
        build()(torch.zeros(shape), [(1, 1)])


@pytest.mark.parametrize("canvases", [[(1, 1)], [(1, 1)] * 3])
def test_another_number_of_canvases_is_refused(canvases):
    with pytest.raises(ValueError, match=rf"2 pictures came with {len(canvases)} canvases; give one \(rows, cols\)"):
        build()(torch.zeros(2, 1, 3, 28, 28), canvases)


@pytest.mark.parametrize(
    ("canvas", "num_tiles"), [((0, 1), 1), ((-1, -1), 1), ((3, 2), 4), ((5, 1), 5), ((1, 1), 5), ((2, 2), 3)]
)
def test_a_canvas_that_does_not_go_with_the_tiles_is_refused(canvas, num_tiles):
    message = f"canvas {canvas[0]} x {canvas[1]} does not go with {num_tiles} tiles; give a canvas of at most 4 tiles"
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(1, num_tiles, 3, 28, 28), [canvas])


def test_several_threads_add_the_gradients_of_positions_up_in_the_same_order_every_time():
    config = VisionConfig(
        tile_size=112, max_tiles=4, patch_size=8, width=256, num_heads=4, mlp_dim=8, num_local_layers=1,
        num_global_layers=1, feature_layers=(),
    )  # fmt: skip
    encoder = VisionEncoder(config)
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    pixels, canvases = torch.randn(4, 4, 3, 112, 112), [(2, 2)] * 4
    tables = [weight for name, weight in encoder.named_parameters() if "position" in name]
    torch.set_num_threads(2)
    try:
        passes = [torch.autograd.grad(encoder(pixels, canvases).square().sum(), tables) for _ in range(6)]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(first, again) for one in passes for first, again in zip(passes[0], one, strict=True))
