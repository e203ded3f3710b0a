"""Where the model looked: equal to a slow twin from full attention matrices and loops over pixels, and the laws."""

import copy
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adapters.cross_attention import GatedCrossAttentionLayer
from adapters.masks import CrossMask
from tests.conftest import random_model
from tests.conversations import FOUR_TILES, MIXED, SMALL, TALL, WIDE, refusal, user
from tests.image_files import encode, exif, noise_picture, smooth_pixels
from tests.nearness import difference
from vision_encoder.tiling import fitted_size
from vlm import VLM, EncodedImage, GenerationConfig, Tokenizer, explain, preset
from vlm.picture_map import Picture, pixel_maps

TINY = preset("tiny")
VISION, DECODER = TINY.vision, TINY.decoder
PER_TILE, GRID, PATCH, TILE = VISION.tokens_per_tile, VISION.grid, VISION.patch_size, VISION.tile_size
REPLY = [*b"a1\xc3\xa9 ", 0, 255]
TOLERANCE = 1e-5


def images_of(messages: list[dict]) -> list:
    parts = [part for turn in messages if isinstance(turn["content"], list) for part in turn["content"]]
    return [part["image"] for part in parts if part["type"] == "image"]


WITH_IMAGES = [messages for messages in MIXED if images_of(messages)]


# The twin


def twin_maps(vlm: VLM, messages: list[dict], reply: list[int], layers=None, heads=None) -> list[list[np.ndarray]]:
    """Maps [token][image], from the full matrices of one pass over the whole text."""
    encoded = [vlm.encode_image(image) for image in images_of(messages)]
    weights = twin_weights(vlm, vlm.prompt_ids(messages), encoded, reply)
    chosen = weights[layers or slice(None)][:, heads or slice(None)]
    return [twin_pixels(row, encoded) for row in chosen.mean((0, 1)).double().numpy()]


@torch.no_grad()
def twin_weights(vlm: VLM, prompt: list[int], encoded: list[EncodedImage], reply: list[int]) -> Tensor:
    """Attention [layers, h, s, l] of the positions that predict `reply`, by its definition; missing tiles last."""
    decoder = vlm.model.decoder
    real = [image.tokens[: image.num_tiles] for image in encoded]
    missing = [image.tokens[image.num_tiles :] for image in encoded]
    tokens = torch.cat([tiles.flatten(0, 1) for tiles in (*real, *missing)])[None]
    visible = torch.tensor(visible_keys(prompt + reply, vlm.tokenizer.image_marker_id, encoded))
    entering, layers = [], [layer for layer in decoder.layers if isinstance(layer, GatedCrossAttentionLayer)]
    hooks = [layer.attention.register_forward_pre_hook(lambda _, args: entering.append(args[0][0])) for layer in layers]
    mask = CrossMask(
        torch.where(visible.any(-1, keepdim=True), visible, True)[None, None], visible.any(-1)[None, :, None]
    )
    decoder(torch.tensor([prompt + reply]), None, decoder.image_kv(tokens), mask)
    for hook in hooks:
        hook.remove()
    found = []
    for layer, x in zip(layers, entering, strict=True):
        attention = layer.attention
        q = unit_heads(x @ attention.q_proj.weight.T, attention.q_norm)
        k = unit_heads(tokens[0] @ attention.k_proj.weight.T, attention.k_norm)
        k = k.repeat_interleave(len(q) // len(k), dim=0)
        scores = torch.stack([q[head] @ k[head].T / DECODER.head_dim**0.5 for head in range(len(q))])
        found.append(scores.masked_fill(~visible, -torch.inf).softmax(-1))
    return torch.stack(found)[:, :, len(prompt) - 1 : -1]


def unit_heads(x: Tensor, norm: torch.nn.RMSNorm) -> Tensor:
    heads = torch.stack(x.split(DECODER.head_dim, dim=-1))
    return heads / (heads.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def visible_keys(ids: list[int], marker_id: int, encoded: list[EncodedImage]) -> list[list[bool]]:
    """For each position and key, whether it is a key of the latest run of images."""
    rows, run, count = [], [], 0
    for place, token_id in enumerate(ids):
        if token_id == marker_id:
            run = [*run, count] if place and ids[place - 1] == marker_id else [count]
            count += 1
        real = [index in run for index, image in enumerate(encoded) for _ in range(image.num_tiles * PER_TILE)]
        missing = sum(len(image.tokens) - image.num_tiles for image in encoded)
        rows.append(real + [False] * missing * PER_TILE)
    return rows


def twin_pixels(weights: np.ndarray, encoded: list[EncodedImage]) -> list[np.ndarray]:
    """Spread the weight of each patch over the pixels that it covers, one by one."""
    maps, key = [], 0
    for image in encoded:
        rows, cols = image.canvas
        fitted = fitted_size(image.size, image.canvas, tile_size=TILE)
        out = np.zeros(image.size)
        for tile in range(rows * cols):
            key += 1  # the class token
            for patch in range(GRID * GRID):
                top = (tile // cols * GRID + patch // GRID) * PATCH
                left = (tile % cols * GRID + patch % GRID) * PATCH
                spread(out, weights[key], top, left, fitted)
                key += 1
        maps.append(out)
    total = sum(out.sum() for out in maps)
    return [out / total for out in maps]


def spread(out: np.ndarray, weight: float, top: int, left: int, fitted: tuple[int, int]) -> None:
    down, across = fitted[0] / out.shape[0], fitted[1] / out.shape[1]
    for y in range(out.shape[0]):
        high = min(top + PATCH, (y + 1) * down) - max(top, y * down)
        for x in range(out.shape[1]) if high > 0 else ():
            wide = min(left + PATCH, (x + 1) * across) - max(left, x * across)
            if wide > 0:
                out[y, x] += weight * high * wide / PATCH**2


def assert_equal(found: list, expected: list[list[np.ndarray]]) -> None:
    """Compare maps [token] or [token][image] with a twin's."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        ours = ours if isinstance(ours, list) else [ours]
        assert len(ours) == len(theirs)
        scale = max(map(np.max, theirs))
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
            assert np.abs(one.numpy() - other).max() < TOLERANCE * scale


@pytest.mark.parametrize("messages", WITH_IMAGES, ids=range(len(WITH_IMAGES)))
def test_maps_equal_the_twins(tiny, messages):
    assert_equal(tiny.explain(messages, REPLY), twin_maps(tiny, messages, REPLY))


def test_the_twin_tells_tokens_layers_and_images_apart(tiny):
    """Otherwise equality with it would say little."""
    maps = np.stack([np.concatenate(row, 1) for row in twin_maps(tiny, user(SMALL, SMALL, "?"), REPLY)])
    assert min(np.abs(maps[0] - other).max() for other in maps[1:]) > 100 * TOLERANCE * maps.max()
    layers = [twin_maps(tiny, user(WIDE), REPLY, layers=[layer])[0][0] for layer in (0, 1)]
    assert np.abs(layers[0] - layers[1]).max() > 100 * TOLERANCE * layers[0].max()


@pytest.mark.parametrize("layers", [0, 1, [1], [0, 1]])
@pytest.mark.parametrize("heads", [None, 2, [0, 3]])
def test_layers_and_heads_can_be_chosen(tiny, layers, heads):
    messages, listed = user("x", WIDE, "y"), lambda some: [some] if isinstance(some, int) else some
    found = tiny.explain(messages, REPLY, layers=layers, heads=heads)
    assert_equal(found, twin_maps(tiny, messages, REPLY, layers=listed(layers), heads=listed(heads)))


def test_a_model_of_the_other_reference_gives_its_own_maps():
    """There the keys of missing tiles follow the real ones, and no row of a reply sees them."""
    config = TINY.with_reference("transformers")
    vlm = VLM(random_model(config, seed=1), Tokenizer.bytes_only())
    messages = user("x", WIDE, SMALL, "y")
    maps = vlm.explain(messages, REPLY)
    assert [each.shape for each in maps[0]] == [(20, 50), (9, 9)]
    for token in maps:
        assert sum(float(each.sum()) for each in token) == pytest.approx(1, abs=1e-5)
    assert vlm.encode_image(WIDE).tokens.shape[0] == 4
    assert_equal(maps, twin_maps(vlm, messages, REPLY))


# Laws


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 1000), (9, 9), (57, 83), (200, 90), (28, 112)])
def test_a_map_has_the_pictures_size_and_sums_to_one(tiny, size):
    maps = tiny.explain(user(noise_picture(size), "?"), REPLY)
    assert len(maps) == len(REPLY)
    for one in maps:
        assert one.dtype == torch.float32
        assert tuple(one.shape) == size
        assert bool((one >= 0).all())
        assert float(one.double().sum()) == pytest.approx(1, abs=1e-5)


def test_the_longest_picture_a_gate_lets_in_gets_its_map(tiny):
    (found,) = tiny.explain(user(Image.new("RGB", (1, 65535))), "x")
    assert tuple(found.shape) == (65535, 1)
    assert float(found.double().sum()) == pytest.approx(1, abs=1e-4)


def test_a_turned_photograph_has_the_map_of_the_upright_picture(tiny):
    picture = Image.fromarray(smooth_pixels((30, 40)))
    turned = encode(picture.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(Orientation=6))
    (found,), (expected,) = (tiny.explain(user(each), "x") for each in (turned, picture))
    assert tuple(found.shape) == (30, 40)
    assert torch.equal(found, expected)


def test_an_image_that_the_reply_does_not_see_has_zeros(tiny):
    apart, together = user("look: ", WIDE, " and ", TALL, " and?"), user(WIDE, TALL, "?")
    for first, second in tiny.explain(apart, REPLY):
        assert float(first.abs().sum()) == 0
        assert float(second.sum()) == pytest.approx(1, abs=1e-5)
    for first, second in tiny.explain(together, REPLY):
        assert 0.05 < float(first.sum()) < 0.95
        assert float(first.sum() + second.sum()) == pytest.approx(1, abs=1e-5)


def test_every_form_of_a_reply_and_of_an_image_gives_the_same_maps(tiny):
    reply = tiny.answer(SMALL, "?", config=GenerationConfig(max_new_tokens=4, temperature=2.0, seed=1))
    expected = tiny.explain(user(SMALL, "?"), reply)
    assert len(expected) == len(reply.token_ids) > 1
    forms = [reply.token_ids, tuple(reply.token_ids)]
    for image, given in [(SMALL, forms[0]), (encode(SMALL, "PNG"), forms[1]), (tiny.encode_image(SMALL), reply)]:
        for found, wanted in zip(tiny.explain(user(image, "?"), given), expected, strict=True):
            assert torch.equal(found, wanted)
    text = tiny.explain(user(SMALL, "?"), "né")
    for found, wanted in zip(text, tiny.explain(user(SMALL, "?"), [*"né".encode()]), strict=True):
        assert torch.equal(found, wanted)


def test_tokens_can_be_chosen_in_any_order(tiny):
    messages = user(WIDE, "?")
    every = tiny.explain(messages, REPLY)
    for tokens in ([0], [3, 1], [5, 5], list(range(len(REPLY)))):
        for found, place in zip(tiny.explain(messages, REPLY, tokens=tokens), tokens, strict=True):
            assert difference(found, every[place]) < TOLERANCE
    assert tiny.explain(messages, REPLY, tokens=[]) == []
    assert tiny.explain(messages, "") == tiny.explain(messages, []) == []


def test_a_smaller_map_is_the_larger_one_summed(tiny):
    messages = user(FOUR_TILES, "?")
    for large, small in zip(tiny.explain(messages, REPLY), tiny.explain(messages, REPLY, max_side=14), strict=True):
        assert difference(small, large.unfold(0, 4, 4).unfold(1, 4, 4).sum((-1, -2))) < TOLERANCE
    assert tuple(tiny.explain(user(noise_picture((10, 40))), "x", max_side=8)[0].shape) == (2, 8)
    assert tuple(tiny.explain(user(SMALL), "x", max_side=1000)[0].shape) == (9, 9)
    assert tuple(tiny.explain(user(noise_picture((1, 40))), "x", max_side=8)[0].shape) == (1, 8)


def test_a_turn_that_is_continued_has_its_own_rows(tiny):
    begun = [*user(WIDE, "?"), {"role": "assistant", "content": "ab"}]
    whole = tiny.explain(user(WIDE, "?"), "abcd")
    for found, expected in zip(tiny.explain(begun, "cd", continue_final=True), whole[2:], strict=True):
        assert difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("limit", [1, 4 * 17 * 3])
def test_rows_computed_some_at_a_time_give_the_same(tiny, monkeypatch, limit):
    messages = user("x" * 30, SMALL, "?")
    expected = tiny.explain(messages, REPLY)
    largest = []

    def watched(q, k, *, mask=None):
        largest.append(q.shape[2])
        return attention_weights(q, k, mask=mask)

    attention_weights = explain.attention_weights
    monkeypatch.setattr(explain, "attention_weights", watched)
    monkeypatch.setattr(explain, "MAX_WEIGHTS", limit)
    for found, wanted in zip(tiny.explain(messages, REPLY), expected, strict=True):
        assert difference(found, wanted) < TOLERANCE
    assert max(largest) == max(1, limit // (4 * 17))


def test_only_rows_of_the_reply_are_computed(tiny, monkeypatch):
    rows = []
    attention_weights = explain.attention_weights
    monkeypatch.setattr(
        explain, "attention_weights", lambda q, k, mask: rows.append(q.shape[2]) or attention_weights(q, k, mask=mask)
    )
    tiny.explain(user("a long question " * 9, WIDE), REPLY, tokens=[2], layers=1)
    assert rows == [3]


# From patches to pixels


@pytest.mark.parametrize("tile", range(4))
@pytest.mark.parametrize("patch", [0, 3, 9])
def test_attention_to_one_patch_lies_on_its_pixels(tiny, monkeypatch, tile, patch):
    """A picture of 112 x 112 stands at half its size on two by two tiles."""

    def to_one_key(q, k, *, mask=None):
        weights = torch.zeros(1, q.shape[1], q.shape[2], k.shape[2])
        weights[..., tile * PER_TILE + 1 + patch] = 0.5
        weights[..., tile * PER_TILE] = 0.5
        return weights

    monkeypatch.setattr(explain, "attention_weights", to_one_key)
    (found,) = tiny.explain(user(noise_picture((112, 112))), "x")
    top, left = tile // 2 * 56 + patch // 4 * 14, tile % 2 * 56 + patch % 4 * 14
    assert float(found[top : top + 14, left : left + 14].sum()) == pytest.approx(1, abs=1e-6)
    assert found.max() == pytest.approx(1 / 14**2)


def test_even_attention_gives_an_even_map(tiny_model):
    """Without queries every key weighs the same; what falls on padding and class tokens is left out."""
    vlm = VLM(copy.deepcopy(tiny_model), Tokenizer.bytes_only())
    with torch.no_grad():
        for layer in vlm.model.decoder.layers:
            if isinstance(layer, GatedCrossAttentionLayer):
                layer.attention.q_proj.weight.zero_()
    for size in ((9, 9), (20, 50), (30, 31), (1, 70)):
        (found,) = vlm.explain(user(noise_picture(size)), "x")
        assert difference(found, torch.full(size, 1 / (size[0] * size[1]))) < TOLERANCE


def test_attention_to_class_tokens_alone_gives_an_even_map_of_what_is_seen():
    small = Picture(vision=VISION, canvas=(1, 1), fitted=(28, 14), map_size=(4, 2))
    weights = torch.zeros(2, 2 * PER_TILE, dtype=torch.float64)
    weights[:, [0, PER_TILE]] = 0.5
    weights[1, 1] = 1e-300
    both, one = pixel_maps(weights, [small, small], (0, 2 * PER_TILE)), pixel_maps(weights, [small] * 2, (PER_TILE, 99))
    assert torch.equal(torch.stack(both[0]), torch.full((2, 4, 2), 1 / 16))
    assert torch.equal(torch.stack(one[0]), torch.stack([torch.zeros(4, 2), torch.full((4, 2), 1 / 8)]))
    # However little lies on a patch, it is all there is.
    assert both[1][0][0, 0] == pytest.approx(1)


# Beside other work


def test_other_threads_passes_leave_no_trace(tiny):
    messages = user(WIDE, "?")
    expected = tiny.explain(messages, REPLY)
    stop, failed = threading.Event(), []

    def answer():
        while not stop.is_set():
            try:
                tiny.answer(TALL, "?", config=GenerationConfig(max_new_tokens=2))
            except Exception as error:  # noqa: BLE001  whatever it is, the test must hear of it
                failed.append(error)
                return

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        for _ in range(10):
            for found, wanted in zip(tiny.explain(messages, REPLY), expected, strict=True):
                assert torch.equal(found, wanted)
    finally:
        stop.set()
        thread.join()
    assert failed == []


def test_nothing_is_left_on_the_model(tiny, monkeypatch):
    messages = user(SMALL, "?")
    before = tiny.logits(messages)
    tiny.explain(messages, REPLY)

    def broken(*args, **kwargs):
        raise KeyError("planted")

    monkeypatch.setattr(explain, "attention_weights", broken)
    with pytest.raises(KeyError, match="planted"):
        tiny.explain(messages, REPLY)
    assert not any(layer._forward_pre_hooks for layer in tiny.model.decoder.layers)
    assert torch.equal(tiny.logits(messages), before)


def test_maps_are_ordinary_tensors_of_the_callers(tiny):
    (found,) = tiny.explain(user(SMALL), "x")
    assert not found.is_inference()
    assert not found.requires_grad
    found += 1


def test_halves_give_nearly_the_maps_of_floats(tiny_model):
    vlm = VLM(copy.deepcopy(tiny_model).to(torch.bfloat16), Tokenizer.bytes_only())
    full = VLM(copy.deepcopy(vlm.model).float(), Tokenizer.bytes_only())
    for found, expected in zip(vlm.explain(user(WIDE), "xy"), full.explain(user(WIDE), "xy"), strict=True):
        assert found.dtype == torch.float32
        assert difference(found, expected) < 0.1


# Refusals


@pytest.mark.parametrize(
    ("messages", "reply", "options", "code", "message"),
    [
        (user("text"), "x", {}, "invalid_request", "messages hold no image"),
        (user(SMALL), 5, {}, "invalid_request", "reply is of type int"),
        (user(SMALL), b"x", {}, "invalid_request", "reply is of type bytes"),
        (user(SMALL), ["x"], {}, "invalid_request", "reply holds 'x'; expected token ids from 0 to 511"),
        (user(SMALL), [512], {}, "invalid_request", "reply holds 512;"),
        (user(SMALL), [-1], {}, "invalid_request", "reply holds -1;"),
        (user(SMALL), [True], {}, "invalid_request", "reply holds True;"),
        (user(SMALL), "x", {"layers": 2}, "invalid_request", "layers holds 2; expected places counted from 0, below 2"),
        (user(SMALL), "x", {"layers": []}, "invalid_request", "layers is empty; expected at least one"),
        (user(SMALL), "x", {"layers": "0"}, "invalid_request", "layers is of type str"),
        (
            user(SMALL),
            "x",
            {"heads": [-1]},
            "invalid_request",
            "heads holds -1; expected places counted from 0, below 4",
        ),
        (
            user(SMALL),
            "x",
            {"tokens": [1]},
            "invalid_request",
            "tokens holds 1; expected places counted from 0, below 1",
        ),
        (user(SMALL), "x", {"max_side": 0}, "invalid_request", "max_side is 0; give an integer of at least 1"),
        (user(SMALL), "x", {"max_side": True}, "invalid_request", "max_side is True;"),
        (user(b"nonsense"), "x", {}, "image_unsupported", ""),
        (user(SMALL), "x" * 600, {}, "context_length_exceeded", "and 600 more were asked for"),
    ],
)
def test_refusals(tiny, messages, reply, options, code, message):
    error = refusal(tiny.explain, messages, reply, **options)
    assert error.code == code
    assert message in error.message


def test_maps_that_no_memory_holds_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(explain, "MAX_MAP_BYTES", 4 * 9 * 9 * 2)
    assert len(tiny.explain(user(SMALL), "xy")) == 2
    error = refusal(tiny.explain, user(SMALL), "xyz")
    assert error.code == "invalid_request"
    assert error.message.startswith("the maps of 3 tokens would take 0.0 GiB")
    assert len(tiny.explain(user(SMALL), "xyz", max_side=7)) == len(tiny.explain(user(SMALL), "xyz", tokens=[1, 2])) + 1


@pytest.mark.parametrize("size", [(0, 9), (-9, 9), (56, 56), (9, 2_000_000)])
def test_an_encoded_image_whose_size_is_not_its_own_is_refused(tiny, size):
    good = tiny.encode_image(SMALL)
    lie = EncodedImage(
        features=good.features, tokens=good.tokens, canvas=good.canvas, size=size, model_key=good.model_key
    )
    error = refusal(tiny.explain, user(lie), "x")
    assert error.code == "invalid_request"
    assert "does not go together" in error.message


def test_weights_that_are_no_numbers_are_refused(tiny_model):
    vlm = VLM(copy.deepcopy(tiny_model), Tokenizer.bytes_only())
    with torch.no_grad():
        vlm.model.decoder.layers[TINY.adapter.cross_layers[1]].attention.q_norm.weight.fill_(torch.nan)
    assert refusal(vlm.explain, user(SMALL), "x").code == "checkpoint_invalid"


def test_a_text_only_model_has_nowhere_to_look():
    config = copy.copy(TINY)
    text_only = VLM(random_model(type(config)(decoder=config.decoder)), Tokenizer.bytes_only())
    assert refusal(text_only.explain, user("x"), "x").code == "invalid_request"
    assert refusal(text_only.explain, user(SMALL), "x").code == "invalid_request"
