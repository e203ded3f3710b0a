"""Keys and values kept in int8: how near they are, what they take, and that nothing else knows of it."""

import copy
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.conftest import random_model
from tests.conversations import MIXED, refusal
from tests.nearness import difference
from vlm import VLM, GenerationConfig, Tokenizer, native, preset
from vlm.attention import attend
from vlm.batch import DecoderPrompt, build_batch
from vlm.decoder import TextDecoder
from vlm.generation.generate import prefill
from vlm.kv_cache import KVCache, dequantize_vectors, empty_cache, quantize_vectors

CONFIG = preset("tiny").decoder
CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(native.library() is None, reason="not run: gcc, or a processor with AVX-512 VNNI")


@pytest.fixture(autouse=True)
def _same_numbers_without_gradients():
    # A number that lies between two codes may become the one or the other when it is computed in another order.
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def int8() -> VLM:
    vlm = VLM(random_model(preset("tiny")), Tokenizer.bytes_only())
    vlm.model.kv_cache_dtype = torch.int8
    return vlm


def filled(batch_size: int = 3, lengths: tuple[int, ...] = (5, 3, 4), capacity: int = 8) -> KVCache:
    """Return a cache with random vectors up to the longest row's end in every layer."""
    cache = empty_cache(CONFIG, batch_size, capacity, dtype=torch.int8, device=CPU)
    for layer in range(CONFIG.num_layers):
        shape = (2, batch_size, CONFIG.num_kv_heads, max(lengths), CONFIG.head_dim)
        cache.write(layer, *torch.randn(shape), cache.positions(max(lengths)))
    return cache.advanced(torch.tensor(lengths), max(lengths))


def expanded(cache: KVCache) -> KVCache:
    """Return the same cache in float32."""
    keys, values = (
        dequantize_vectors(codes, scales, torch.float32)
        for codes, scales in zip((cache.keys, cache.values), cache.scales, strict=True)
    )
    return cache._replace(keys=keys, values=values, scales=None)


def assert_same(found: KVCache, expected: KVCache) -> None:
    assert all(torch.equal(x, y) for x, y in zip(found.parts, expected.parts, strict=True))
    assert (found.lengths.tolist(), found.max_length) == (expected.lengths.tolist(), expected.max_length)


# Vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_every_number_is_at_most_half_a_step_off_and_a_step_is_a_127th_of_the_largest(dtype, size):
    x = (size * torch.randn(2000, 16)).to(dtype)
    codes, scales = quantize_vectors(x)
    assert codes.abs().max() == 127
    # A scale is rounded to bfloat16, by 1/256 at most.
    steps = x.double().abs().amax(-1) / 127
    assert ((scales.double() - steps).abs() <= steps / 256).all()
    found = codes.double() * scales.double()[:, None]
    assert ((found - x.double()).abs() <= (0.5 + 1e-4) * scales.double()[:, None]).all()
    assert torch.equal(dequantize_vectors(codes, scales, torch.float64), found)


@pytest.mark.parametrize("smallest", [0.0, 1e-45, torch.finfo(torch.float32).tiny])
def test_what_is_zero_or_nearly_so_stays_it(smallest):
    x = torch.full((2, 8), smallest)
    found = dequantize_vectors(*quantize_vectors(x), torch.float32)
    assert (found - x).abs().max() <= torch.finfo(torch.bfloat16).tiny


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_stays_none_in_its_vector_alone(bad):
    x = torch.randn(3, 8)
    x[1, 2] = bad
    found = dequantize_vectors(*quantize_vectors(x), torch.float32)
    assert found.isfinite().all(-1).tolist() == [True, False, True]


# The cache


def test_it_takes_a_byte_a_number_and_two_a_vector():
    caches = [empty_cache(CONFIG, 2, 9, dtype=dtype, device=CPU) for dtype in (torch.int8, torch.bfloat16)]
    found, plain = (sum(part.nbytes for part in cache.parts) for cache in caches)
    assert found / plain == (CONFIG.head_dim + 2) / (2 * CONFIG.head_dim)
    assert all((part == 0).all() for part in caches[0].parts)


@pytest.mark.parametrize("lengths", [(4,), (4, 1, 0)])
def test_what_is_written_is_quantised_and_lands_where_it_would_otherwise(lengths):
    cache = filled(len(lengths), lengths)
    twin = expanded(cache)
    new = torch.randn(2, len(lengths), CONFIG.num_kv_heads, 2, CONFIG.head_dim)
    cache.write(1, *new, cache.positions(2))
    twin.write(1, *dequantize_vectors(*quantize_vectors(new), torch.float32), twin.positions(2))
    assert_same(expanded(cache), twin)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.kept([0, 2]),
        lambda cache: cache.kept([2, 1]),
        lambda cache: cache.repeated(2),
        lambda cache: cache.advanced(torch.tensor([1, 0, 2]), 2),
        lambda cache: cache.clear(1) or cache,
        lambda cache: cache.put(0, cache, 2, 4) or cache,
        lambda cache: cache.mapped(lambda part: part[:, :2]),
    ],
    ids=["close a gap", "move the last", "repeat", "advance", "clear", "put", "map"],
)
def test_codes_and_scales_move_together(change):
    cache = filled()
    assert_same(expanded(change(copy.deepcopy(cache))), change(expanded(cache)))


# Attention


def kept(groups: int, length: int, width: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return int8 keys and values and their scales, views of a longer cache, of vectors unlike each other in size."""
    sizes = torch.logspace(-1, 0.5, length + 7)[torch.randperm(length + 7)]
    codes, scales = quantize_vectors(torch.randn(2, 1, groups, length + 7, width) * sizes[:, None])
    keys, values = codes[..., :length, :]
    return keys, values, tuple(scales[..., :length])


def exact_attention(q: Tensor, keys: Tensor, values: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
    k, v = (codes.double() * scale.double()[..., None] for codes, scale in zip((keys, values), scales, strict=True))
    return functional.scaled_dot_product_attention(q.double(), k, v, enable_gqa=True)


@needs_native
@pytest.mark.parametrize(
    ("heads", "groups", "length", "width"),
    [
        (8, 2, 1, 64),
        (6, 2, 37, 64),
        (5, 1, 200, 128),
        (2, 2, 16, 256),
        (4, 1, 256, 64),
        (7, 1, 258, 64),
        (3, 1, 773, 192),
    ],
)
def test_attention_of_one_position_reads_codes_as_exactly_as_numbers(heads, groups, length, width):
    q = 3 * torch.randn(1, 1, heads, width).bfloat16().transpose(1, 2)
    keys, values, scales = kept(groups, length, width)
    exact = exact_attention(q, keys, values, scales)
    found = native.attend_one(q, keys, values, scales)
    assert torch.equal(attend(q, keys, values, scales), found)
    assert (found.double() - exact).abs().max() <= exact.abs().max() * torch.finfo(torch.bfloat16).eps


SPAN = 256  # positions that our kernel takes at a time


def near_exact(q: Tensor, keys: Tensor, values: Tensor, scales: tuple[Tensor, Tensor]) -> bool:
    exact = exact_attention(q, keys, values, scales)
    found = native.attend_one(q, keys, values, scales)
    return (found.double() - exact).abs().max() <= exact.abs().max() * torch.finfo(torch.bfloat16).eps


@needs_native
@pytest.mark.parametrize("place", [0, SPAN - 1, SPAN, 2 * SPAN + 3, 2 * SPAN + 9])
@pytest.mark.parametrize("size", [0.3, 10.0])
def test_the_highest_score_may_be_that_of_any_position(place, size):
    q = torch.randn(1, 4, 1, 64).bfloat16()
    keys, values, scales = kept(1, 2 * SPAN + 10, 64)
    keys[0, 0, place], scales[0][0, 0, place] = quantize_vectors(size * q[0, 1, 0])
    assert near_exact(q, keys, values, scales)


@needs_native
def test_positions_of_hardly_any_weight_add_up_where_none_has_more():
    q = torch.ones(1, 4, 1, 64).bfloat16()
    keys, scales = quantize_vectors(torch.zeros(1, 1, 4 * SPAN, 64))
    keys[0, 0, 5], scales[0, 0, 5] = quantize_vectors(1.7 * q[0, 0, 0])  # weighs e^13.6 times the others
    values, of_values = quantize_vectors(torch.rand(1, 1, 4 * SPAN, 64) + 1)
    values[0, 0, :SPAN] = 0  # beside it what weighs so little is lost
    assert near_exact(q, keys, values, (scales, of_values))


@needs_native
def test_what_lies_beyond_the_last_position_changes_nothing():
    q = torch.randn(1, 4, 1, 64).bfloat16()
    codes, (of_keys, of_values) = torch.randint(-127, 128, (2, 1, 1, 300, 64)).to(torch.int8), torch.rand(2, 1, 1, 300)
    scales = of_keys.bfloat16(), of_values.bfloat16()

    def attended(end: int) -> Tensor:
        return native.attend_one(q, *codes[..., :end, :], tuple(scale[..., :end] for scale in scales))

    for end in (1, 15, SPAN - 1, SPAN + 1, SPAN + 18):
        before = attended(end)
        codes[..., end:, :] = 127
        for scale in scales:
            scale[..., end:] = math.nan
        assert torch.equal(attended(end), before)
        assert before.isfinite().all()
        codes[..., end:, :] = 5
        for scale in scales:
            scale[..., end:] = 0.5


@needs_native
@pytest.mark.parametrize("length", [1, 3, 18, SPAN + 2])
def test_nothing_is_read_beyond_the_last_position(length):
    done = subprocess.run([sys.executable, "-c", _AT_THE_END_OF_MEMORY, str(length)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


_AT_THE_END_OF_MEMORY = """
import ctypes, mmap, sys, torch
from vlm import native

def last(shape, dtype):
    size = torch.empty(shape, dtype=dtype).nbytes
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory, room))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    return torch.frombuffer(memory, dtype=torch.uint8)[room - size : room].view(dtype).view(shape).fill_(1)

length = int(sys.argv[1])
codes = [last((1, 1, length, 64), torch.int8) for _ in range(2)]
scales = [last((1, 1, length), torch.bfloat16) for _ in range(2)]
with torch.no_grad():
    assert (native.attend_one(torch.ones(1, 4, 1, 64).bfloat16(), *codes, scales) == 1).all()
"""


@needs_native
def test_scores_may_all_be_far_below_zero():
    q, (_, values, scales) = torch.randn(1, 1, 1, 64).bfloat16(), kept(1, 5, 64)
    codes, of_keys = quantize_vectors(-torch.linspace(50, 60, 5)[:, None] * q[0, 0])
    assert near_exact(q, codes[None, None], values, (of_keys[None, None], scales[1]))


@needs_native
@pytest.mark.parametrize("place", [0, SPAN - 1, SPAN + 40])
@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, -0x40], ids=["nan", "inf", "-nan"])
def test_a_scale_that_is_no_number_reaches_the_heads_that_see_it(place, bits):
    q = torch.randn(1, 6, 1, 64).bfloat16()
    for part in range(2):
        keys, values, scales = kept(2, SPAN + 50, 64)
        (keys, values)[part][0, 1, place] = 0  # as such a vector is kept
        scales[part].view(torch.int16)[0, 1, place] = bits
        finite = native.attend_one(q, keys, values, scales).isfinite()
        assert finite[0, :3].all()
        assert not finite[0, 3:].any()


@needs_native
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_query_that_is_no_number_stays_none_alone(bad):
    q = torch.randn(1, 5, 1, 64).bfloat16()
    q[0, 2, 0, 7] = bad
    finite = native.attend_one(q, *kept(1, SPAN + 50, 64)).isfinite()
    assert finite.all(-1).flatten().tolist() == [True, True, False, True, True]
    assert not finite[0, 2].any()


@needs_native
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e30])
def test_queries_of_any_size_are_attended_with(size):
    q = (size * torch.randn(1, 4, 1, 64)).bfloat16()
    assert near_exact(q, *kept(1, SPAN + 50, 64))


@needs_native
def test_how_many_threads_there_are_changes_nothing():
    q, (keys, values, scales) = torch.randn(1, 20, 1, 64).bfloat16(), kept(4, 3 * SPAN + 5, 64)
    found, threads = native.attend_one(q, keys, values, scales), torch.get_num_threads()
    torch.set_num_threads(3 if threads != 3 else 2)
    try:
        assert torch.equal(native.attend_one(q, keys, values, scales), found)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_without_our_kernel_is_of_the_expanded_numbers(dtype, monkeypatch):
    monkeypatch.setattr("vlm.attention.attend_one", lambda *_: None)
    q = torch.randn(1, 4, 1, 32).to(dtype)
    keys, values, scales = kept(2, 40, 32)
    exact = exact_attention(q, keys, values, scales)
    # Here the numbers are rounded too, before they are multiplied.
    assert difference(attend(q, keys, values, scales), exact) <= 4 * torch.finfo(dtype).eps


# Models


def replies(vlm: VLM, count: int = 12) -> list[list[int]]:
    return [vlm.chat(messages, config=GenerationConfig(max_new_tokens=count)).token_ids for messages in MIXED]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_off_by_no_more_than_independent_half_steps_add_up_to(tiny_model, dtype):
    model = copy.deepcopy(tiny_model).to(dtype)
    ids = torch.randint(512, (1, 40))

    def logits(cache_dtype: torch.dtype) -> Tensor:
        cache = empty_cache(CONFIG, 1, 40, dtype=cache_dtype, device=CPU)
        found = []
        for block in ids.split([20, *[1] * 20], dim=1):
            output = model.decoder(block, cache)
            cache = output.cache
            found.append(model.decoder.logits(output.hidden))
        return torch.cat(found, 1)

    plain = logits(dtype)
    # Half a step is 1/254 of a vector's largest number; keys and values of every layer are off by as much at most.
    bound = math.sqrt(2 * CONFIG.num_layers) / 254
    assert 0 < difference(logits(torch.int8), plain) < bound + 4 * torch.finfo(dtype).eps


@needs_native
def test_a_token_of_one_row_is_decoded_without_expanding_the_cache(monkeypatch):
    wide = replace(CONFIG, width=256, num_extra_embeddings=0)  # heads of 64
    decoder = TextDecoder(wide).bfloat16()
    cache = empty_cache(wide, 1, 30, dtype=torch.int8, device=CPU)
    cache = decoder(torch.arange(20)[None], cache).cache
    with monkeypatch.context() as patched:
        patched.setattr("vlm.attention.attend_one", lambda *_: None)
        expected = decoder(torch.tensor([[20]]), copy.deepcopy(cache)).hidden
    monkeypatch.setattr("vlm.attention.dequantize_vectors", None)
    assert difference(decoder(torch.tensor([[20]]), cache).hidden, expected) < 0.02


@pytest.mark.parametrize("chunk", [1, 7])
def test_how_a_prompt_is_cut_changes_nothing(int8, chunk):
    prompts = [DecoderPrompt(torch.randint(512, (length,)).tolist(), []) for length in (23, 9)]
    whole, cut = (prefill(int8.model, build_batch(prompts, 512, CPU), 30, size) for size in (2048, chunk))
    assert whole.cache.keys.dtype == torch.int8
    assert difference(cut.hidden, whole.hidden) < 1e-5


def test_rows_of_a_batch_get_the_replies_they_get_alone(int8):
    config = GenerationConfig(max_new_tokens=12)
    assert [reply.token_ids for reply in int8.chat_many(MIXED, config=config)] == replies(int8)


def test_texts_are_scored_as_they_are_one_by_one(int8):
    texts = ["yes", "no, not at all", "x"]
    together = int8.score(MIXED[0], texts)
    alone = [int8.score(MIXED[0], [text])[0] for text in texts]
    assert [each.logprob for each in together] == pytest.approx([each.logprob for each in alone], rel=1e-4)


# The option


def test_the_option_says_what_a_model_keeps(tmp_path, int8):
    int8.save_pretrained(tmp_path)
    loaded = VLM.from_pretrained(tmp_path, kv_cache_dtype="int8")
    assert loaded.model.empty_cache(1, 4).keys.dtype == torch.int8
    assert replies(loaded, 4) == replies(int8, 4)
    assert VLM.from_pretrained(tmp_path).model.empty_cache(1, 4).keys.dtype == torch.float32


@pytest.mark.parametrize(("bad", "shown"), [("int4", "'int4'"), (None, "None"), (torch.float16, "torch.float16")])
def test_another_dtype_is_refused(bad, shown):
    error = refusal(VLM.from_pretrained, kv_cache_dtype=bad)
    assert error.code == "invalid_request"
    assert error.message == f"kv_cache_dtype is {shown}; give 'auto' or 'int8'"
