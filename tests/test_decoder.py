"""The text decoder beside a slow twin with complex rotations, and what it must and must not look at."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import vlm.decoder
from adapters import CrossMask, ImageKV
from tests.conftest import random_model
from tests.nearness import difference
from vlm.config import DecoderConfig, ModelConfig, RopeScaling, preset
from vlm.decoder import TextDecoder
from vlm.kv_cache import KVCache, empty_cache

TINY = preset("tiny").decoder
TOLERANCE = 1e-5


def build(**changes) -> TextDecoder:
    """Return a random text-only decoder."""
    return random_model(ModelConfig(decoder=replace(TINY, **changes))).decoder


def cache_for(decoder: TextDecoder, batch_size: int = 1, capacity: int = 32) -> KVCache:
    return empty_cache(decoder.config, batch_size, capacity, dtype=torch.float32, device=torch.device("cpu"))


def draw_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(decoder: TextDecoder, ids: Tensor, *args, **kwargs) -> Tensor:
    return decoder.logits(decoder(ids, *args, **kwargs).hidden)


def twin(decoder: TextDecoder, ids: list[int]) -> Tensor:
    """Logits [s, n] of one text in float64, a head and a row at a time, positions as complex numbers.

    Source: llama-models models/llama3/model.py, Transformer.
    """
    config: DecoderConfig = decoder.config
    weights = {name: weight.double() for name, weight in decoder.named_parameters()}
    half = config.head_dim // 2

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weights[f"{name}.weight"]

    turns = []
    for pair in range(half):
        frequency = config.rope_theta ** (-2 * pair / config.head_dim)
        scaling = config.rope_scaling
        if scaling is not None:
            rounds = scaling.original_context * frequency / (2 * math.pi)
            keep = (rounds - scaling.low_frequency_factor) / (
                scaling.high_frequency_factor - scaling.low_frequency_factor
            )
            keep = min(max(keep, 0.0), 1.0)
            frequency = keep * frequency + (1 - keep) * frequency / scaling.factor
        turns.append([complex(math.cos(frequency * place), math.sin(frequency * place)) for place in range(len(ids))])
    turns = torch.tensor(turns).T.to(torch.complex128)

    def turned(x: Tensor) -> Tensor:
        z = torch.complex(x[:, :half], x[:, half:]) * turns
        return torch.cat([z.real, z.imag], dim=-1)

    x = weights["embedding.weight"][ids]
    for index in range(len(decoder.layers)):
        name = f"layers.{index}"
        normed, heads = norm(x, f"{name}.attention_norm"), []
        for head in range(config.num_heads):
            group = head // (config.num_heads // config.num_kv_heads)
            mine = slice(head * config.head_dim, (head + 1) * config.head_dim)
            shared = slice(group * config.head_dim, (group + 1) * config.head_dim)
            q = turned(normed @ weights[f"{name}.attention.q_proj.weight"][mine].T)
            k = turned(normed @ weights[f"{name}.attention.k_proj.weight"][shared].T)
            v = normed @ weights[f"{name}.attention.v_proj.weight"][shared].T
            rows = [
                (k[: row + 1] @ q[row] / math.sqrt(config.head_dim)).softmax(0) @ v[: row + 1]
                for row in range(len(ids))
            ]
            heads.append(torch.stack(rows))
        x = x + torch.cat(heads, dim=-1) @ weights[f"{name}.attention.o_proj.weight"].T
        normed = norm(x, f"{name}.mlp_norm")
        gate = normed @ weights[f"{name}.mlp.gate_proj.weight"].T
        inner = gate * torch.sigmoid(gate) * (normed @ weights[f"{name}.mlp.up_proj.weight"].T)
        x = x + inner @ weights[f"{name}.mlp.down_proj.weight"].T
    head = weights["embedding.weight"] if config.tied else weights["head.weight"]
    return norm(x, "norm") @ head.T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": RopeScaling(factor=32.0, original_context=16)},
        {"num_kv_heads": 4},
        {"num_kv_heads": 1},
        {"num_heads": 2, "num_kv_heads": 2},
        {"tied": True, "num_extra_embeddings": 0},
        {"norm_eps": 0.1, "rope_theta": 100.0},
    ],
    ids=str,
)
def test_logits_equal_the_slow_twins(changes):
    decoder = build(**changes)
    ids = draw_ids(23)
    assert difference(logits(decoder, ids[None])[0], twin(decoder, ids.tolist())) < TOLERANCE


def test_each_row_of_a_batch_is_a_text_of_its_own():
    decoder, ids = build(), draw_ids(3, 9)
    found = logits(decoder, ids)
    for row in range(3):
        assert difference(found[row], twin(decoder, ids[row].tolist())) < TOLERANCE


def test_later_tokens_leave_earlier_logits_bit_equal():
    decoder, ids = build(), draw_ids(1, 20)
    other = ids.clone()
    other[:, 12:] = draw_ids(1, 8, seed=5)
    found, expected = logits(decoder, other), logits(decoder, ids)
    assert torch.equal(found[:, :12], expected[:, :12])
    assert not torch.equal(found[:, 12:], expected[:, 12:])


def test_every_earlier_token_reaches_the_last_logits():
    decoder, ids = build(), draw_ids(1, 12)
    expected = logits(decoder, ids)[0, -1]
    for place in range(12):
        other = ids.clone()
        other[0, place] = (other[0, place] + 1) % TINY.vocab_size
        assert difference(logits(decoder, other)[0, -1], expected) > 1e-4, place


def test_the_order_of_earlier_tokens_matters():
    decoder = build()
    ids = torch.tensor([[1, 2, 3, 4], [3, 2, 1, 4]])
    first, second = logits(decoder, ids)[:, -1]
    assert difference(first, second) > 1e-3


# The cache


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 13], [13, 7], [2, 1, 5, 1, 1, 10]], ids=str)
def test_any_division_of_a_text_into_passes_gives_the_logits_of_one_pass(sizes):
    decoder, ids = build(), draw_ids(2, 20)
    expected = logits(decoder, ids)
    cache, found, start = cache_for(decoder, 2, 20), [], 0
    with torch.no_grad():
        for size in sizes:
            hidden, cache = decoder(ids[:, start : start + size], cache)
            found.append(decoder.logits(hidden))
            start += size
    assert difference(torch.cat(found, dim=1), expected) < TOLERANCE
    assert (cache.max_length, cache.lengths.tolist()) == (20, [20, 20])


def test_rows_of_other_lengths_go_on_where_each_ended():
    """Padded on the right, then continued together; what stands in the padding means nothing."""
    decoder = build()
    lengths, more = [7, 2, 5, 1], 4
    texts = [draw_ids(length + more, seed=length) for length in lengths]
    for filler in (0, 511):
        ids = torch.full((4, 7), filler)
        for row, length in enumerate(lengths):
            ids[row, :length] = texts[row][:length]
        with torch.no_grad():
            hidden, cache = decoder(ids, cache_for(decoder, 4, 7 + more), num_new=torch.tensor(lengths))
            rest = torch.stack([text[length:] for text, length in zip(texts, lengths, strict=True)])
            steps = []
            for step in range(more):
                output = decoder(rest[:, step : step + 1], cache)
                steps.append(decoder.logits(output.hidden))
                cache = output.cache
            first = decoder.logits(hidden)
        for row, length in enumerate(lengths):
            expected = logits(decoder, texts[row][None])[0]
            assert difference(first[row, :length], expected[:length]) < TOLERANCE
            assert difference(torch.cat([step[row] for step in steps]), expected[length:]) < TOLERANCE
        assert cache.lengths.tolist() == [length + more for length in lengths]


def test_what_lies_past_a_rows_end_in_the_cache_is_not_seen():
    decoder = build()
    with torch.no_grad():
        _, cache = decoder(draw_ids(2, 6), cache_for(decoder, 2), num_new=torch.tensor([6, 3]))
        spoiled = copy.deepcopy(cache)
        spoiled.keys[:, 1, :, 4:], spoiled.values[:, 1, :, 4:] = 1000, -1000
        spoiled.keys[:, 0, :, 7:], spoiled.values[:, 0, :, 7:] = 1000, -1000
        ids = draw_ids(2, 1)
        found, expected = decoder(ids, spoiled).hidden, decoder(ids, cache).hidden
    assert torch.equal(found, expected)


def test_continuations_of_one_prompt_share_its_cache():
    decoder, prompt, rest = build(), draw_ids(1, 6), draw_ids(3, 4, seed=1)
    expected = logits(decoder, torch.cat([prompt.expand(3, -1), rest], dim=1))[:, 6:]
    with torch.no_grad():
        _, cache = decoder(prompt, cache_for(decoder))
        found = logits(decoder, rest, cache.repeated(3))
    assert difference(found, expected) < TOLERANCE


def test_a_full_cache_refuses_one_token_more():
    decoder = build()
    with torch.no_grad():
        _, cache = decoder(draw_ids(1, 8), cache_for(decoder, capacity=8))
        with pytest.raises((IndexError, RuntimeError)):
            decoder(draw_ids(1, 1), cache)


def test_without_a_cache_none_comes_back():
    assert build()(draw_ids(1, 3)).cache is None


# Attention as it must be called (model_facts 7)


def test_key_heads_are_never_repeated_and_no_mask_is_larger_than_a_chunk_by_the_keys(monkeypatch):
    decoder, calls = build(), []

    def recorded(q: Tensor, k: Tensor, *rest, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        calls.append((q.shape, k.shape, mask, causal))
        return attend(q, k, *rest, mask=mask, causal=causal)

    attend = vlm.decoder.attend
    monkeypatch.setattr(vlm.decoder, "attend", recorded)
    cache = cache_for(decoder, 2, 24)
    with torch.no_grad():
        for size in (10, 10, 1):
            _, cache = decoder(draw_ids(2, size), cache)
    layers = decoder.config.num_layers
    assert [len(calls), *(shape[1] for _, shape, *_ in calls)] == [3 * layers] + [TINY.num_kv_heads] * 3 * layers
    first, second, step = (calls[place * layers] for place in range(3))
    assert (first[2], first[3], first[1][2]) == (None, True, 10)
    assert (second[2].shape, second[3], second[1][2]) == ((2, 1, 10, 20), False, 20)
    assert (step[2].shape, step[1][2]) == ((2, 1, 1, 21), 21)


def test_one_row_decodes_without_a_mask(monkeypatch):
    decoder, masks = build(), []
    attend = vlm.decoder.attend
    monkeypatch.setattr(
        vlm.decoder, "attend", lambda *qkv, mask=None, **more: (masks.append(mask), attend(*qkv, mask=mask, **more))[1]
    )
    with torch.no_grad():
        _, cache = decoder(draw_ids(1, 5), cache_for(decoder))
        decoder(draw_ids(1, 1), cache)
    assert masks == [None] * 2 * decoder.config.num_layers


# Heads, embeddings, images


def test_a_tied_head_is_the_embedding():
    decoder = build(tied=True, num_extra_embeddings=0)
    assert decoder.head is None
    assert not any(name.startswith("head") for name, _ in decoder.named_parameters())
    hidden = torch.randn(2, 32)
    assert torch.equal(decoder.logits(hidden), functional.linear(hidden, decoder.embedding.weight))


def test_the_marker_has_an_embedding_and_no_logit(tiny_model):
    decoder = tiny_model.decoder
    ids = torch.tensor([[3, TINY.vocab_size, 5]])
    assert decoder.embedding.num_embeddings == TINY.vocab_size + 8
    assert logits(decoder, ids).shape == (1, 3, TINY.vocab_size)


def test_without_an_image_the_cross_layers_do_not_run(tiny_model):
    decoder, ids = tiny_model.decoder, draw_ids(1, 9)
    plain = TextDecoder(TINY)
    kept = [layer for index, layer in enumerate(decoder.layers) if index not in decoder.adapter.cross_layers]
    plain.layers = torch.nn.ModuleList(kept)
    plain.embedding, plain.norm, plain.head = decoder.embedding, decoder.norm, decoder.head
    assert torch.equal(logits(decoder, ids), logits(plain, ids))


def test_image_keys_and_values_come_a_cross_layer_at_a_time_in_their_order(tiny_model):
    decoder = tiny_model.decoder
    tokens = torch.randn(2, 5, TINY.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = decoder.image_kv(tokens)
        assert found.keys.shape == found.values.shape == (2, 2, TINY.num_kv_heads, 5, TINY.head_dim)
        for place, index in enumerate(decoder.adapter.cross_layers):
            alone = decoder.layers[index].attention.project(tokens)
            assert torch.equal(found.layer(place).keys, alone.keys)
            assert torch.equal(found.layer(place).values, alone.values)
    assert not torch.equal(found.keys[0], found.keys[1])


@torch.no_grad()
def test_each_cross_layer_looks_at_its_own_keys_and_values(tiny_model):
    decoder, ids = tiny_model.decoder, draw_ids(1, 4)
    image = decoder.image_kv(torch.randn(1, 5, TINY.width, generator=torch.Generator().manual_seed(0)))
    cross, outputs = [decoder.layers[index] for index in decoder.adapter.cross_layers], []
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in cross]
    for changed in (None, 0, 1):
        other = ImageKV(image.keys, image.values.clone())
        if changed is not None:
            other.values[changed] += 1
        decoder(ids, image=other, mask=CrossMask(None, None))
    for hook in hooks:
        hook.remove()
    clean, first, second = (outputs[start : start + 2] for start in (0, 2, 4))
    assert not torch.equal(first[0], clean[0])
    assert torch.equal(second[0], clean[0])
    assert not torch.equal(second[1], clean[1])


def test_ids_are_left_as_they_were():
    ids = draw_ids(2, 5)
    before = ids.clone()
    build()(ids)
    assert torch.equal(ids, before)


def test_gradients_equal_the_slow_twins():
    decoder, ids = build(num_layers=2), draw_ids(9)
    towards = torch.randn(9, TINY.vocab_size, generator=torch.Generator().manual_seed(1))
    names, weights = zip(*decoder.named_parameters(), strict=True)
    found = torch.autograd.grad((decoder.logits(decoder(ids[None]).hidden)[0] * towards).sum(), weights)
    expected = torch.autograd.grad((twin(decoder, ids.tolist()) * towards).sum(), weights)
    for name, ours, theirs in zip(names, found, expected, strict=True):
        assert theirs.abs().max() > 0, name
        assert difference(ours, theirs) < 1e-4, name
