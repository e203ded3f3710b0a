"""The laws that hold whatever the weights are: gates, caches, chunks, neighbours, padding, and NaN (faults N1 to N9).

Prompts are those of the parity tests, on a small random model with open gates.
"""

import copy
import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from llama_models.llama3.chat_format import create_vision_mask
from torch import Tensor

from tests.nearness import difference
from tests.oracles import ours
from tests.oracles.cases import Case, Picture, SmallConfig, build_case, prompt_names
from vlm.batch import Batch, DecoderPrompt, build_batch
from vlm.config import preset
from vlm.generation.generate import BadLogits, Prefilled, Step, decode, prefill
from vlm.generation.sampling import GenerationConfig, Sampler
from vlm.kv_cache import empty_cache
from vlm.model import VisionLanguageModel
from vlm.pipeline import VLM

CONFIG = preset("tiny")
# Only what prompts are drawn from: the tiny preset's ids and tiles.
SMALL = SmallConfig(name="tiny", patch_size=7, tile_size=28, vocab_size=CONFIG.decoder.vocab_size)
MARKER = SMALL.marker
NAMES = prompt_names(SMALL)
IMAGE_NAMES = [name for name in NAMES if name != "text_only"]
TOLERANCE = 1e-5
CPU = torch.device("cpu")


@cache
def case(name: str, seed: int = 0) -> Case:
    return build_case(SMALL, name, seed)


@pytest.fixture(scope="module")
def prompts(tiny_model) -> dict[str, DecoderPrompt]:
    """Every prompt with its images encoded."""
    return {name: ours.prompt(tiny_model, case(name)) for name in NAMES}


def together(*prompts: DecoderPrompt) -> Batch:
    return build_batch(list(prompts), MARKER, CPU)


@torch.no_grad()
def logits(model: VisionLanguageModel, batch: Batch) -> list[Tensor]:
    """[s, n] of each row, in one pass."""
    found = model(batch.ids, batch.image, batch.mask(0, batch.ids.shape[1]))
    return [found[row, :length] for row, length in enumerate(batch.lengths)]


@torch.no_grad()
def text_logits(model: VisionLanguageModel, ids: list[int]) -> Tensor:
    """[s, n] of the ids alone, no image near."""
    return model(torch.tensor([ids]))[0]


@torch.no_grad()
def greedy(model: VisionLanguageModel, batch: Batch, count: int = 6, chunk: int = 2048) -> list[list[int] | None]:
    """The likeliest `count` tokens of every row; None where a row's logits are no numbers."""
    prefilled = prefill(model, batch, max(batch.lengths) + count, chunk)
    samplers = [Sampler(GenerationConfig(), [], CPU) for _ in batch.lengths]
    replies: list[list[int] | None] = [[] for _ in batch.lengths]
    for step in decode(model, batch, prefilled, samplers, [count] * len(samplers), set()):
        if isinstance(step, BadLogits):
            replies[step.row] = None
        elif isinstance(step, Step):
            replies[step.row].append(step.token_id)
    return replies


# Zero gates


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_zero_gates_give_the_text_only_logits(tiny_model, prompts, name):
    shut = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for index in CONFIG.adapter.cross_layers:
            shut.decoder.layers[index].attention_gate.zero_()
            shut.decoder.layers[index].mlp_gate.zero_()
    expected = text_logits(shut, case(name).ids)
    assert torch.equal(logits(shut, together(prompts[name]))[0], expected)
    assert difference(logits(tiny_model, together(prompts[name]))[0], expected) > 0.01, "open gates matter"


# The cache


@pytest.mark.parametrize("name", NAMES)
def test_decoding_with_the_cache_token_by_token_equals_one_full_pass(tiny_model, prompts, name):
    batch = together(prompts[name])
    expected = logits(tiny_model, batch)[0]
    with torch.no_grad():
        cached = empty_cache(CONFIG.decoder, 1, len(expected), dtype=torch.float32, device=CPU)
        rows = []
        for place in range(len(expected)):
            ids = batch.ids[:, place : place + 1]
            output = tiny_model.decoder(ids, cached, batch.image, batch.mask(place, place + 1))
            rows.append(tiny_model.decoder.logits(output.hidden[:, 0]))
            cached = output.cache
    assert difference(torch.cat(rows), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["text_only", "one_tile_middle", "four_tiles_wide_last", "two_images_apart",
                                  "two_images_adjacent", "two_images_last"])  # fmt: skip
def test_a_reply_sees_what_the_prompts_last_token_saw_as_one_full_pass_does(tiny_model, prompts, name):
    prompt = prompts[name]
    reply = torch.randint(MARKER, (5,), generator=torch.Generator().manual_seed(3)).tolist()
    full = DecoderPrompt(prompt.ids + reply, prompt.images)
    expected = logits(tiny_model, together(full))[0][len(prompt.ids) - 1 :]
    batch = together(prompt)
    with torch.no_grad():
        hidden, cached = prefill(tiny_model, batch, len(full.ids))
        rows = [hidden]
        for token in reply:
            output = tiny_model.decoder(torch.tensor([[token]]), cached, batch.image, batch.reply_mask())
            rows.append(output.hidden[:, 0])
            cached = output.cache
        assert difference(tiny_model.decoder.logits(torch.cat(rows)), expected) < TOLERANCE


def test_greedy_decoding_equals_taking_the_likeliest_token_of_full_passes(tiny_model, prompts):
    for name in ("text_only", "one_tile_middle", "two_images_apart", "four_tiles_square"):
        ids = list(prompts[name].ids)
        for _ in range(5):
            ids.append(int(logits(tiny_model, together(DecoderPrompt(ids, prompts[name].images)))[0][-1].argmax()))
        assert greedy(tiny_model, together(prompts[name]), 5) == [ids[-5:]]


ENDING_ROWS = ["two_images_apart", "text_only", "one_tile_last", "four_tiles_square", "one_tile_middle"]


@pytest.mark.parametrize("lengths", [[1, 6, 2, 4, 3], [6, 1, 1, 5, 1], [2, 3, 4, 5, 6], [6, 5, 1, 1, 6]], ids=str)
@pytest.mark.parametrize("names", [ENDING_ROWS, ["one_tile_middle"] * 5], ids=["own images", "one image"])
def test_rows_that_ended_are_computed_no_more_and_the_others_reply_as_alone(tiny_model, prompts, names, lengths):
    expected = [
        greedy(tiny_model, together(prompts[name]), length)[0] for name, length in zip(names, lengths, strict=True)
    ]
    decoded = []

    def note(_, arguments):
        decoded.append(len(arguments[0]))

    batch = together(*(prompts[name] for name in names))
    with torch.no_grad():
        prefilled = prefill(tiny_model, batch, max(batch.lengths) + max(lengths))
        samplers = [Sampler(GenerationConfig(), [], CPU) for _ in names]
        ended: set[int] = set()
        replies: list[list[int]] = [[] for _ in names]
        with tiny_model.decoder.register_forward_pre_hook(note):
            for step in decode(tiny_model, batch, prefilled, samplers, [9] * len(names), ended):
                replies[step.row].append(step.token_id)
                # By the caller's word, as where a reply ends.
                if len(replies[step.row]) == lengths[step.row]:
                    ended.add(step.row)
    assert replies == expected
    assert decoded == [sum(length > count for length in lengths) for count in range(1, max(lengths))]


# Chunks (N9)

CHUNKED_ROWS = ["two_images_apart", "text_only", "one_tile_last", "four_tiles_square", "two_images_of_other_grids"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 39, 40, 41, 2048])
@pytest.mark.parametrize("rows", [["text_only"], ["two_images_apart"], ["one_tile_first"], CHUNKED_ROWS], ids=len)
def test_the_chunks_of_a_prompt_change_nothing(tiny_model, prompts, rows, chunk):
    batch = together(*(prompts[name] for name in rows))
    capacity = max(batch.lengths) + 2

    def read(size: int) -> tuple[Prefilled, Tensor]:
        with torch.no_grad():
            prefilled = prefill(tiny_model, batch, capacity, size)
            kept = copy.deepcopy(prefilled)
            step = torch.full((len(rows), 1), 5)
            after = tiny_model.decoder(step, prefilled.cache, batch.image, batch.reply_mask()).hidden
        return kept, after

    (hidden, cached), after = read(chunk)
    (expected_hidden, expected_cached), expected_after = read(2048)
    assert difference(hidden, expected_hidden) < TOLERANCE
    assert difference(after, expected_after) < TOLERANCE
    assert cached.lengths.tolist() == expected_cached.lengths.tolist() == batch.lengths
    assert cached.max_length == max(batch.lengths)
    for row, length in enumerate(batch.lengths):
        for found, expected in ((cached.keys, expected_cached.keys), (cached.values, expected_cached.values)):
            assert difference(found[:, row, :, :length], expected[:, row, :, :length]) < TOLERANCE
        assert difference(tiny_model.decoder.logits(hidden[row]), logits(tiny_model, batch)[row][-1]) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_greedy_replies_of_a_mixed_batch_are_the_same_in_all_chunks(tiny_model, prompts, chunk):
    batch = together(*(prompts[name] for name in CHUNKED_ROWS))
    assert greedy(tiny_model, batch, chunk=chunk) == greedy(tiny_model, batch)


# Neighbours (N1, N2)

TARGETS = ["text_only", "one_tile_middle", "two_images_apart", "four_tiles_square", "three_images"]


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("target", TARGETS)
def test_a_row_gives_in_every_slot_of_a_mixed_batch_what_it_gives_alone(tiny_model, prompts, target, size):
    alone = logits(tiny_model, together(prompts[target]))[0]
    reply = greedy(tiny_model, together(prompts[target]), 3)
    others = [name for name in NAMES if name != target]
    for slot in range(size):
        rows = [others[(size + slot + place) % len(others)] for place in range(size - 1)]
        rows.insert(slot, target)
        batch = together(*(prompts[name] for name in rows))
        assert difference(logits(tiny_model, batch)[slot], alone) < TOLERANCE, rows
        if slot in (0, size - 1):
            assert [greedy(tiny_model, batch, 3)[slot]] == reply, rows


def test_a_text_only_row_beside_images_equals_its_text_only_run(tiny_model, prompts):
    for name in IMAGE_NAMES:
        batch = together(prompts[name], prompts["text_only"])
        assert difference(logits(tiny_model, batch)[1], text_logits(tiny_model, case("text_only").ids)) < TOLERANCE


def test_rows_that_share_an_image_equal_their_singles(tiny_model, prompts):
    """They share one copy of its keys; rows of the same images in another order do not."""
    first, second = prompts["two_images_of_other_grids"], prompts["one_tile_middle"]
    shared = [DecoderPrompt(first.ids, first.images), DecoderPrompt([*second.ids[::-1], MARKER], first.images)]
    turned = [DecoderPrompt(first.ids, first.images), DecoderPrompt(first.ids, first.images[::-1])]
    longer = [DecoderPrompt(first.ids, first.images), DecoderPrompt(second.ids, first.images[:1])]
    for rows in (shared, turned, longer):
        batch = together(*rows)
        assert (batch.image.keys.stride(1) == 0) == (rows is shared)
        for found, prompt in zip(logits(tiny_model, batch), rows, strict=True):
            assert difference(found, logits(tiny_model, together(prompt))[0]) < TOLERANCE


@pytest.mark.parametrize("name", ["text_only", "one_tile_middle", "two_images_apart"])
def test_a_repeated_batch_gives_the_row_each_time(tiny_model, prompts, name):
    batch = together(prompts[name])
    alone = logits(tiny_model, batch)[0]
    for found in logits(tiny_model, batch.repeated(3)):
        assert difference(found, alone) < TOLERANCE
    with torch.no_grad():
        cached = prefill(tiny_model, batch, len(alone) + 2).cache
        many = batch.repeated(3)
        rest = torch.tensor([[1, 2], [3, 4], [5, 6]])
        output = tiny_model.decoder(rest, cached.repeated(3), many.image, many.reply_mask())
    for row in range(3):
        full = DecoderPrompt(prompts[name].ids + rest[row].tolist(), prompts[name].images)
        expected = logits(tiny_model, together(full))[0][-2:]
        assert difference(tiny_model.decoder.logits(output.hidden[row]), expected) < TOLERANCE


# Padding is invisible


@pytest.mark.parametrize("name", ["one_tile_middle", "two_tiles_wide", "three_tiles_wide"])
def test_what_stands_in_missing_tiles_is_invisible_to_the_decoder(tiny_model, name):
    picture = case(name).images[0]
    used = len(picture.pixels)

    def with_missing(filler: float) -> Tensor:
        pixels = torch.full((1, 4, *picture.pixels.shape[1:]), filler)
        pixels[0, :used] = picture.pixels
        with torch.no_grad():
            tokens = tiny_model.encode(pixels, [picture.grid])[1][:, :used]
            kv = tiny_model.decoder.image_kv(tokens.flatten(1, 2))
        prompt = DecoderPrompt(case(name).ids, [ours.PromptImage(kv, kv.keys.shape[3])])
        return logits(tiny_model, together(prompt))[0]

    zeros = with_missing(0.0)
    for filler in (5.0, math.nan):
        assert torch.equal(with_missing(filler), zeros)


def test_other_rows_images_are_invisible(tiny_model, prompts):
    names = ["one_tile_middle", "four_tiles_square", "text_only", "two_images_apart"]
    changed = ours.prompt(tiny_model, case("four_tiles_square", seed=1))._replace(ids=prompts["four_tiles_square"].ids)
    before = logits(tiny_model, together(*(prompts[name] for name in names)))
    after = logits(tiny_model, together(prompts[names[0]], changed, *(prompts[name] for name in names[2:])))
    for row in (0, 2, 3):
        assert torch.equal(after[row], before[row])
    assert not torch.equal(after[1], before[1])


def test_padding_of_ids_and_of_image_keys_is_invisible(tiny_model, prompts):
    batch = together(*(prompts[name] for name in CHUNKED_ROWS))
    before = logits(tiny_model, batch)
    ids, image = batch.ids.clone(), copy.deepcopy(batch.image)
    for row, (length, own) in enumerate(zip(batch.lengths, batch.num_own.tolist(), strict=True)):
        assert (image.keys[:, row, :, own:] == 0).all(), "zeros, for a mask does not stop NaN"
        assert (image.values[:, row, :, own:] == 0).all()
        ids[row, length:] = 7
        image.keys[:, row, :, own:], image.values[:, row, :, own:] = 30, -30
    after = logits(tiny_model, batch._replace(ids=ids, image=image))
    for row, name in enumerate(CHUNKED_ROWS):
        assert torch.equal(after[row], before[row]), name


# Text before the first image (N3)


@pytest.mark.parametrize("name", [name for name in IMAGE_NAMES if case(name).ids[0] != MARKER])
def test_text_before_the_first_image_gets_text_only_logits(tiny_model, prompts, name):
    marker = case(name).ids.index(MARKER)
    found = logits(tiny_model, together(prompts[name]))[0][:marker]
    assert difference(found, text_logits(tiny_model, case(name).ids)[:marker]) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in IMAGE_NAMES if case(name).ids[0] != MARKER])
def test_text_before_the_first_image_is_bit_unchanged_by_the_pixels(tiny_model, prompts, name):
    ids, images = case(name)
    marker = ids.index(MARKER)
    others = [Picture(-2 * picture.pixels.flip(-1), picture.grid) for picture in images]
    changed = ours.prompt(tiny_model, Case(ids, others))
    for neighbours in ([], [prompts["four_tiles_square"]], [prompts["text_only"], prompts["three_images"]]):
        before = logits(tiny_model, together(prompts[name], *neighbours))[0]
        after = logits(tiny_model, together(changed, *neighbours))[0]
        assert torch.equal(after[:marker], before[:marker])
        assert difference(after[marker:], before[marker:]) > 1e-3


# Several images (N4)


def metas_keys(prompt: DecoderPrompt, num_keys: int) -> Tensor:
    """[s, l]: the keys each position may see by Meta's intervals."""
    ends = np.cumsum([0] + [image.num_visible for image in prompt.images])
    mask = torch.zeros(len(prompt.ids), num_keys, dtype=torch.bool)
    for image, (start, stop) in enumerate(create_vision_mask(prompt.ids, MARKER)):
        mask[start : len(prompt.ids) if stop == -1 else stop, ends[image] : ends[image + 1]] = True
    return mask


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_masks_of_a_batch_are_metas_intervals_and_hide_every_padded_key(prompts, chunk):
    for rows in ([name] for name in IMAGE_NAMES):
        check_masks([prompts[name] for name in rows], chunk)
    check_masks(list(prompts.values()), chunk)


def check_masks(rows: list[DecoderPrompt], chunk: int) -> None:
    batch = together(*rows)
    num_keys, num_positions = batch.image.keys.shape[3], batch.ids.shape[1]
    for start in range(0, num_positions, chunk):
        size = min(chunk, num_positions - start)
        keys, sees = batch.mask(start, start + size)
        keys = torch.ones(1, 1, 1, num_keys).bool() if keys is None else keys
        sees = torch.ones(1, 1, 1).bool() if sees is None else sees
        found = (keys[:, 0] & sees).expand(len(rows), size, num_keys)
        for row, prompt in enumerate(rows):
            expected = metas_keys(prompt, num_keys)[start : start + size]
            assert torch.equal(found[row, : len(expected)], expected)


def test_the_second_image_takes_over_from_the_first(tiny_model, prompts):
    """In the rows after the second marker the cross-attention takes nothing from the first image."""
    prompt = prompts["two_images_apart"]
    second = [place for place, token in enumerate(prompt.ids) if token == MARKER][1]
    batch = together(prompt)
    other = copy.deepcopy(batch.image)
    first_keys = prompt.images[0].num_visible
    other.keys[:, :, :, :first_keys] = 50
    x = torch.randn(1, len(prompt.ids), CONFIG.decoder.width, generator=torch.Generator().manual_seed(0))
    layer = tiny_model.decoder.layers[CONFIG.adapter.cross_layers[0]]
    mask = batch.mask(0, len(prompt.ids))
    with torch.no_grad():
        found, expected = layer(x, other.layer(0), mask), layer(x, batch.image.layer(0), mask)
    assert torch.equal(found[:, second:], expected[:, second:])
    assert not torch.equal(found[:, second - 1], expected[:, second - 1])


# What is no number (N6)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("slot", [0, 1, 3])
@pytest.mark.parametrize("name", ["two_tiles_tall", "four_tiles_tall_first"])
def test_nan_in_one_rows_image_leaves_its_neighbours_bit_equal(tiny_model, prompts, name, slot, broken):
    """Also where the broken row has the most keys, whose places its neighbours have as padding."""
    ids, (picture,) = case(name)
    pixels = picture.pixels.clone()
    pixels[0, 0, 3, 3] = broken
    spoiled = ours.prompt(tiny_model, Case(ids, [Picture(pixels, picture.grid)]))
    assert not spoiled.images[0].kv.values.isfinite().any()
    neighbours = [prompts[other] for other in ("text_only", "one_tile_last", "two_images_apart")]

    def rows(own: DecoderPrompt) -> Batch:
        return together(*neighbours[:slot], own, *neighbours[slot:])

    found, expected = logits(tiny_model, rows(spoiled)), logits(tiny_model, rows(prompts[name]))
    for row in set(range(4)) - {slot}:
        assert torch.equal(found[row], expected[row])
    assert not found[slot][-1].isfinite().any()
    for chunk in (2, 2048):
        replies, clean = (greedy(tiny_model, rows(prompt), 3, chunk) for prompt in (spoiled, prompts[name]))
        assert replies[slot] is None
        assert None not in clean
        assert replies[:slot] + replies[slot + 1 :] == clean[:slot] + clean[slot + 1 :]


@pytest.mark.parametrize("chunk", [1, 3, 2048])
@pytest.mark.parametrize("slot", [0, 2, 5])
def test_a_broken_embedding_reaches_no_row_that_does_not_hold_its_token(tiny_model, prompts, slot, chunk):
    """Id 0, and at the end of its row: what a batch might be padded with."""
    spoiled = copy.deepcopy(tiny_model)
    with torch.no_grad():
        spoiled.decoder.embedding.weight[0] = math.nan
    rows = [prompts[name] for name in CHUNKED_ROWS]
    assert not any(0 in prompt.ids for prompt in rows)
    expected = greedy(tiny_model, together(*rows), 3)
    rows.insert(slot, DecoderPrompt([*prompts["one_tile_middle"].ids[:-1], 0], prompts["one_tile_middle"].images))
    replies = greedy(spoiled, together(*rows), 3, chunk)
    assert replies.pop(slot) is None
    assert replies == expected


# The same again (N8)


@pytest.fixture
def other_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_twenty_runs_are_bit_equal_from_pixels_to_logits(tiny_model):
    cases = [case(name) for name in ("one_tile_middle", "text_only", "two_images_of_other_grids")]
    expected = ours.logits_many(tiny_model, cases)
    for _ in range(19):
        for found, first in zip(ours.logits_many(tiny_model, cases), expected, strict=True):
            assert torch.equal(found, first)


@pytest.mark.usefixtures("other_threads")
def test_two_threads_give_the_greedy_ids_of_one(tiny_model):
    cases = [case(name) for name in ("one_tile_middle", "text_only", "two_images_of_other_grids", "four_tiles_square")]
    replies, found = {}, {}
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        found[num_threads] = ours.logits_many(tiny_model, cases)
        replies[num_threads] = greedy(tiny_model, ours.batch(tiny_model, cases), 8)
    assert replies[1] == replies[2]
    for one, two in zip(found[1], found[2], strict=True):
        assert difference(two, one) < TOLERANCE


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seed_gives_the_same_ids_twenty_times_with_and_without_the_image_cache(tiny_model, tiny, temperature):
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    config = GenerationConfig(max_new_tokens=6, temperature=temperature, seed=3)
    uncached = VLM(tiny_model, tiny.tokenizer, cache_bytes=0)
    expected = uncached.chat(messages, config=config).token_ids
    assert len(expected) > 3
    for vlm in [uncached] * 3 + [tiny] * 17:
        assert vlm.chat(messages, config=config).token_ids == expected


# Training


def test_gradients_are_finite_and_reach_every_weight(tiny_model):
    """From the logits of a mixed batch back to the pixels' patches."""
    model = copy.deepcopy(tiny_model)
    cases = [case(name) for name in ("text_only", "one_tile_middle", "two_images_apart", "four_tiles_square")]
    prompts = []
    for ids, images in cases:
        kv = [model.decoder.image_kv(model.encode(i.pixels[None], [i.grid])[1].flatten(1, 2)) for i in images]
        prompts.append(DecoderPrompt(ids, [ours.PromptImage(each, each.keys.shape[3]) for each in kv]))
    batch = together(*prompts)
    model(batch.ids, batch.image, batch.mask(0, batch.ids.shape[1])).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name
